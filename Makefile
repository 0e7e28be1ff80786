# Every target brings what it needs: a machine with git, make and cargo is enough (Debian 12, Ubuntu 22.04 or newer).
# The work is done by the scripts, which can be run without make just as well.

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

run: ## build and run all three on this machine; Ctrl-C stops them
	@packaging/setup.sh build
	@packaging/run.sh

test: ## run everything that this machine can test, and say what was skipped
	@packaging/test.sh

bench: ## measure what kpulse costs on this machine
	@packaging/setup.sh build
	@tests/overhead/run.sh

soak: ## 10,000 containers come and go under a scraped exporter, 50,000 threads stay, a browser browses, Kafka dies (root needed)
	@packaging/setup.sh build
	cargo build --quiet --workspace
	KPULSE_SOAK_CONTAINERS=$(or $(CONTAINERS),10000) KPULSE_SOAK_QUIET_SECONDS=$(or $(QUIET),600) cargo test --quiet -p kpulse-tests --test soak -- --nocapture
	KPULSE_SOAK_KILLS=$(or $(KILLS),50) KPULSE_SOAK_AWAY=$(or $(AWAY),60) cargo test --quiet -p kpulse-tests --test pipeline -- --test-threads=1 --nocapture faults

lint: ## check format and lints only
	@packaging/setup.sh test
	@packaging/lint.sh

format: ## format the Rust and C code
	@packaging/setup.sh test
	@packaging/lint.sh --fix

reference: ## regenerate the files that are generated from the code
	@packaging/setup.sh build
	@mkdir -p target
	cargo run --quiet -p kpulse-event-gateway -- schema >target/event.schema.json
	mv target/event.schema.json event-gateway/schema/event.schema.json
	cargo run --quiet -p kpulse-event-gateway -- schema profiles >target/profile.schema.json
	mv target/profile.schema.json event-gateway/schema/profile.schema.json
	for file in $$(find exporter-ebpf/src/probes event-gateway/src/watch -name '*.mapping.json'); do \
		cargo run --quiet -p kpulse-event-gateway -- mapping $$(basename $$file .mapping.json) >target/mapping.json && \
		mv target/mapping.json $$file || exit; \
	done
	cargo run --quiet -p kpulse-event-gateway -- reference >target/EVENTS.md
	mv target/EVENTS.md EVENTS.md
	cargo run --quiet -p kpulse-exporter -- reference >target/METRICS.md
	mv target/METRICS.md METRICS.md

matrix: ## boot other kernels and test in them; KERNELS="5.10 newest" chooses
	@packaging/setup.sh test
	@tests/matrix/run.sh $(if $(KERNELS),--kernels "$(KERNELS)")

fresh: ## prove `make run` in a new Debian 12 (root and debootstrap needed)
	@tests/fresh-machine.sh

clean: ## remove what was built
	cargo clean

.PHONY: help run test bench soak lint format reference matrix fresh clean
