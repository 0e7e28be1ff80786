//! A flame graph that a browser shows by itself: one SVG file, searchable, zoomable, nothing loaded from elsewhere.

use anyhow::Context;
use inferno::flamegraph::{self, Options};

/// Draws folded lines; those with two counts make a comparison. Without a stack, the picture says so instead of being an
/// error.
pub fn draw<'a>(
    lines: impl Iterator<Item = &'a str>,
    title: &str,
    subtitle: &str,
) -> anyhow::Result<Vec<u8>> {
    let mut options = Options::default();
    options.title = title.to_owned();
    options.subtitle = Some(subtitle.to_owned());
    options.count_name = "samples".into();
    // A function keeps its colour from one picture to the next.
    options.deterministic = true;
    // Of a comparison the earlier profile alone has no width.
    let mut lines = lines.filter(|line| !line.ends_with(" 0")).peekable();
    let nothing = lines.peek().is_none().then_some("no samples 1");
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, nothing.into_iter().chain(lines), &mut svg)
        .context("cannot draw the flame graph")?;
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::folded::Folded;
    use proptest::prelude::*;

    fn drawn(folded: &Folded, title: &str, subtitle: &str) -> String {
        String::from_utf8(draw(folded.text().lines(), title, subtitle).unwrap()).unwrap()
    }

    #[test]
    fn an_empty_profile_is_a_picture_that_says_so() {
        let svg = drawn(&Folded::default(), "host", "");
        assert!(svg.contains("no samples"));
    }

    #[test]
    fn markup_in_a_name_stays_text() {
        let mut folded = Folded::default();
        folded.add("t", ["<script>alert(1)</script>"], 3);
        let svg = drawn(&folded, "<b>host", "a & b");
        assert!(!svg.contains("<script>alert") && !svg.contains("<b>host"));
        assert!(svg.contains("&lt;script&gt;alert(1)"));
    }

    #[test]
    fn a_comparison_with_nothing_to_compare_says_so() {
        let svg = draw(["a;b 5 0"].into_iter(), "host", "").unwrap();
        assert!(String::from_utf8(svg).unwrap().contains("no samples"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn draws_any_names(names in prop::collection::vec(any::<String>(), 1..6), count in 1u64..1000) {
            let mut folded = Folded::default();
            folded.add(&names[0], names[1..].iter().map(String::as_str), count);
            let svg = drawn(&folded, "host", "");
            let total = format!("total_samples=\"{count}\"");
            prop_assert!(svg.contains(&total), "{}", svg);
        }
    }
}
