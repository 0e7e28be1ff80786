//! What is a Go function called, as Go's own tools print it?

use std::borrow::Cow;

/// How the compiler names the types that share one instance of a generic function.
const SHAPE: &str = "go.shape.";
const ANY: &str = "[...]";

/// The name without type arguments; `None` for what only passes them on to the shared instance.
pub fn printed(name: &str) -> Option<Cow<'_, str>> {
    let Some((start, end)) = name.find('[').zip(name.rfind(']')).filter(|(start, end)| start < end) else {
        return Some(name.into());
    };
    let arguments = &name[start..=end];
    let is_passing_on = arguments != ANY && !arguments.contains(SHAPE);
    (!is_passing_on).then(|| format!("{}{ANY}{}", &name[..start], &name[end + 1..]).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_of_a_generic_function_have_one_name() {
        for (name, expected) in [
            ("main.(*Engine).deep", Some("main.(*Engine).deep")),
            ("main.(*kern[go.shape.uint64]).Run", Some("main.(*kern[...]).Run")),
            ("main.(*kern[uint64]).Run", None),
            ("slices.pdqsort[go.shape.[]int_0].func1", Some("slices.pdqsort[...].func1")),
            ("main.Map[...].func1", Some("main.Map[...].func1")),
            ("odd][", Some("odd][")),
        ] {
            assert_eq!(printed(name).as_deref(), expected);
        }
    }
}
