use super::*;
use proptest::prelude::*;
use serde::Deserialize;
use std::io::Write;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    web: Web,
    switches: BTreeMap<String, bool>,
    labels: BTreeMap<String, String>,
    token: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Web {
    listen_address: Vec<String>,
    max_requests: u32,
    ratio: f64,
    title: String,
    #[serde(with = "humantime_serde")]
    timeout: Duration,
}

impl Default for Web {
    fn default() -> Self {
        Self {
            listen_address: vec![":1".into()],
            max_requests: 40,
            ratio: 0.01,
            title: "default".into(),
            timeout: Duration::from_millis(50),
        }
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            web: Web::default(),
            switches: BTreeMap::from([("one".into(), true), ("two".into(), true)]),
            labels: BTreeMap::new(),
            token: None,
        }
    }
}

/// Loads from the text of a file, environment variables, and flags.
fn load_all(
    file: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, Value)],
) -> Result<Sample, ConfigError> {
    let mut path = tempfile::NamedTempFile::new().unwrap();
    path.write_all(file.as_bytes()).unwrap();
    let layers = Layers {
        file: Some(path.path().to_owned()),
        environment_prefix: "KPULSE_X",
        overrides: flags.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
    };
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).into()));
    load_from(&Sample::default(), &layers, environment)
}

/// The error as the user sees it, with the file's name replaced.
fn refusal(file: &str, environment: &[(&str, &str)], flags: &[(&str, Value)]) -> String {
    let text = load_all(file, environment, flags).unwrap_err().to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    let start = text.find("/tmp/.tmp");
    let end = start.and_then(|start| Some(start + text[start..].find([';', ' '])?));
    match (start, end) {
        (Some(start), Some(end)) => format!("{}FILE{}", &text[..start], &text[end..]),
        _ => text,
    }
}

#[test]
fn takes_the_defaults_when_nothing_is_given() {
    assert_eq!(load_all("", &[], &[]).unwrap(), Sample::default());
    assert_eq!(load_all("# only a comment\n", &[], &[]).unwrap(), Sample::default());
    let empty_sections = "web:\nswitches:\n  one:\n";
    assert_eq!(load_all(empty_sections, &[], &[]).unwrap(), Sample::default());
}

#[test]
fn reads_every_type_from_the_file() {
    let file = "web: {listen_address: [\":2\", \":3\"], max_requests: 7, ratio: 1, title: x, timeout: 2s}\n\
                switches: {two: false}\nlabels: {region: eu, \"a.b\": c}\ntoken: t\n";
    let sample = load_all(file, &[], &[]).unwrap();
    assert_eq!(sample.web.listen_address, [":2", ":3"]);
    assert_eq!((sample.web.max_requests, sample.web.ratio), (7, 1.0));
    assert_eq!((&*sample.web.title, sample.web.timeout), ("x", Duration::from_secs(2)));
    assert_eq!(sample.switches, BTreeMap::from([("one".into(), true), ("two".into(), false)]));
    assert_eq!(sample.labels, BTreeMap::from([("region".into(), "eu".into()), ("a.b".into(), "c".into())]));
    assert_eq!(sample.token.as_deref(), Some("t"));
}

#[test]
fn reads_every_type_from_the_environment() {
    let environment = [
        ("KPULSE_X__WEB__LISTEN_ADDRESS", ":2, :3"),
        ("KPULSE_X__WEB__MAX_REQUESTS", "7"),
        ("KPULSE_X__WEB__RATIO", "0.5"),
        ("KPULSE_X__WEB__TITLE", "12"),
        ("KPULSE_X__WEB__TIMEOUT", "2s"),
        ("KPULSE_X__SWITCHES__ONE", "false"),
        ("KPULSE_X__LABELS__REGION", "eu"),
        ("KPULSE_X__TOKEN", "t"),
        ("KPULSE_X_CONFIG_FILE", "of no concern"),
        ("KPULSE_XY__WEB", "of no concern"),
    ];
    let sample = load_all("", &environment, &[]).unwrap();
    assert_eq!(sample.web.listen_address, [":2", ":3"]);
    assert_eq!((sample.web.max_requests, sample.web.ratio), (7, 0.5));
    assert_eq!((&*sample.web.title, sample.web.timeout), ("12", Duration::from_secs(2)));
    assert!(!sample.switches["one"]);
    assert_eq!(sample.labels["region"], "eu");
    assert_eq!(sample.token.as_deref(), Some("t"));
}

#[test]
fn an_unknown_key_names_itself_its_layer_and_the_nearest_key() {
    assert_eq!(
        refusal("web:\n  listen_adress: [\":2\"]\n", &[], &[]),
        "unknown configuration key `web.listen_adress` in the file FILE; the nearest known key is \
         `web.listen_address`"
    );
    assert_eq!(
        refusal("", &[("KPULSE_X__WEB__TITEL", "x")], &[]),
        "unknown configuration key `web.titel` in the environment variable KPULSE_X__WEB__TITEL; the nearest \
         known key is `web.title`"
    );
    assert_eq!(
        refusal("", &[], &[("switches.on", true.into())]),
        "unknown configuration key `switches.on` in the flag --switches.on; the nearest known key is \
         `switches.one`"
    );
    assert!(refusal("max_requests: 3", &[], &[]).contains("is `web.max_requests`"));
}

#[test]
fn a_wrong_value_names_the_key_the_layer_and_what_is_expected() {
    let cases = [
        ("web: {max_requests: many}", "`web.max_requests`", "is \"many\", but a whole number is expected"),
        ("web: {max_requests: 1.5}", "`web.max_requests`", "is 1.5, but a whole number is expected"),
        ("web: {max_requests: -1}", "`web.max_requests`", "is -1, but it must not be negative"),
        ("web: {max_requests: 99999999999}", "`web.max_requests`", "is 99999999999, but"),
        ("web: {ratio: -0.5}", "`web.ratio`", "is -0.5, but it must not be negative"),
        ("web: {title: 5}", "`web.title`", "is 5, but text is expected"),
        ("web: {timeout: 5}", "`web.timeout`", "is 5, but a duration such as \"50ms\" is expected"),
        ("web: {timeout: -5ms}", "`web.timeout`", "is \"-5ms\", but it must not be negative"),
        ("web: {timeout: soon}", "`web.timeout`", "is \"soon\", but it is not valid: "),
        ("web: {listen_address: x}", "`web.listen_address`", "is \"x\", but a list is expected"),
        ("web: x", "`web`", "is \"x\", but a section with keys is expected"),
        ("switches: {one: maybe}", "`switches.one`", "is \"maybe\", but true or false is expected"),
        ("switches: {one: 1}", "`switches.one`", "is 1, but true or false is expected"),
    ];
    for (file, key, why) in cases {
        let text = refusal(file, &[], &[]);
        assert!(
            text.contains(key) && text.contains(why) && text.contains("in the file FILE"),
            "{file}: {text}"
        );
    }
    let text = refusal("", &[("KPULSE_X__WEB__TIMEOUT", "-1s")], &[]);
    assert!(
        text.contains("variable KPULSE_X__WEB__TIMEOUT is \"-1s\", but it must not be negative"),
        "{text}"
    );
}

#[test]
fn a_file_that_is_no_yaml_says_where() {
    for file in
        ["web: [", "a: b: c", "web:\n\t- x", "- just\n- a list", "text", "{a: 1}\n---\n{b: 2}", "\u{0}"]
    {
        let text = refusal(file, &[], &[]);
        println!("{text}");
        assert!(text.contains("FILE is not valid YAML: "), "{file:?}: {text}");
    }
    let text = refusal("web:\n  title: a\n bad: [", &[], &[]);
    assert!(text.contains("line 3"), "{text}");
}

#[test]
fn a_missing_file_is_an_error() {
    let layers = Layers { file: Some("/nonexistent/x.yaml".into()), ..Layers::default() };
    let text = load::<Sample>(&layers).unwrap_err().to_string();
    assert!(
        text.starts_with("cannot read the configuration file /nonexistent/x.yaml: No such file"),
        "{text}"
    );
}

#[test]
fn changed_keys_are_named_without_their_values() {
    let new = load_all("token: secret\nweb: {title: other}\nlabels: {a: b}\n", &[], &[]).unwrap();
    assert_eq!(changed_keys(&Sample::default(), &new), ["labels.a", "token", "web.title"]);
    assert!(changed_keys(&new, &new).is_empty());
}

proptest! {
    #[test]
    fn the_last_layer_that_gives_a_key_wins(
        file in prop::option::of(0u32..1000),
        environment in prop::option::of(0u32..1000),
        flag in prop::option::of(0u32..1000),
        other in prop::option::of("[a-z]{1,8}"),
    ) {
        let mut text = String::from("web:\n");
        if let Some(number) = file {
            text += &format!("  max_requests: {number}\n");
        }
        if let Some(title) = &other {
            text += &format!("  title: \"{title}\"\n");
        }
        let number = environment.map(|number| number.to_string()).unwrap_or_default();
        let environment_layer = environment.map(|_| ("KPULSE_X__WEB__MAX_REQUESTS", number.as_str()));
        let flags = flag.map(|number| ("web.max_requests", Value::from(number)));
        let sample = load_all(&text, environment_layer.as_slice(), flags.as_slice()).unwrap();
        prop_assert_eq!(sample.web.max_requests, flag.or(environment).or(file).unwrap_or(40));
        prop_assert_eq!(sample.web.title, other.unwrap_or_else(|| "default".into()));
        prop_assert_eq!(sample.web.timeout, Web::default().timeout);
    }

    #[test]
    fn any_text_is_read_or_refused_in_one_line(text in "\\PC{0,60}", value in "\\PC{0,20}") {
        for result in [
            load_all(&text, &[], &[]),
            load_all("", &[("KPULSE_X__WEB__TIMEOUT", &value), ("KPULSE_X__SWITCHES__ONE", &value)], &[]),
            load_all("", &[], &[(&text, value.as_str().into())]),
        ] {
            if let Err(error) = result {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }
}
