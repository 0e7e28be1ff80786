package main

import "C"

//export goBack
func goBack() {
	choose()
	sink++
}
