//! Kafka by password and by certificate, Elasticsearch by password and by API key, both over TLS: who is let in delivers, and
//! who is not says why in one sentence and loses nothing.

use crate::pair::{Access, LONG, Way, metric};
use crate::secured::{USER, secured};
use kpulse_tests::process::{Service, run};
use kpulse_tests::{http, skip, until, within};
use std::process::Command;

const EVENTS: usize = 30;
const WRONG: &str = "wr0ng-password";

/// What is set anew of an access.
type Change<'c> = &'c [(&'static str, String)];

fn changed(access: &Access, properties: Change<'_>, elasticsearch: Change<'_>) -> Access {
    let mut access = access.clone();
    for (own, new) in [(&mut access.properties, properties), (&mut access.elasticsearch, elasticsearch)] {
        own.retain(|(name, _)| new.iter().all(|(other, _)| other != name));
        own.extend(new.iter().filter(|(_, value)| !value.is_empty()).cloned());
    }
    access
}

/// A service has told one error so far, which has these words in it.
fn one_error(service: &Service, words: &[&str]) {
    let line = until("error", || {
        service.stderr().lines().find(|line| line.contains("level=error")).map(str::to_owned)
    });
    let errors = service.stderr().matches("level=error").count();
    assert_eq!(errors, 1, "{}", service.stderr());
    for word in words {
        assert!(line.contains(word), "no {word:?} in {line}");
    }
}

/// Nothing that was said, in the log or in metrics, is a secret.
fn keeps_secrets(said: &str) {
    for secret in [USER.1, WRONG, "kpulse-tests", "BEGIN"] {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
}

/// Each has some seconds for what is on its way.
fn all_stop(services: &mut [Service]) {
    for service in &*services {
        service.signal(libc::SIGTERM);
    }
    for service in services {
        assert_eq!(service.wait().code(), Some(0), "{}", service.stderr());
        keeps_secrets(&service.stderr());
    }
}

fn metrics(service: &Service) -> String {
    http::get(&service.logged("message=listening", "web"), "/metrics", "").body
}

#[test]
fn whoever_has_a_password_a_certificate_or_a_key_delivers() {
    let secured = match secured() {
        Ok(secured) => secured,
        Err(why) => return skip("whoever_has_a_password", &why),
    };
    let way = Way::with("secured", secured.access());
    let by_certificate = Access {
        brokers: secured.kafka_by_certificate.clone(),
        ..changed(
            &way.access,
            &[
                ("security.protocol", "ssl".to_owned()),
                ("ssl.certificate.location", secured.file("client.pem")),
                ("ssl.key.location", secured.file("client.key")),
                ("sasl.mechanism", String::new()),
            ],
            &[("API_KEY_FILE", secured.secret("api-key", &secured.api_key("1d")))],
        )
    };
    let plain = changed(
        &way.access,
        &[("sasl.mechanism", "PLAIN".to_owned()), ("sasl.password", String::new())],
        &[
            ("USERNAME", USER.0.to_owned()),
            ("PASSWORD", String::new()),
            ("PASSWORD_FILE", secured.secret("password", USER.1)),
        ],
    );
    let in_file = secured.secret("sasl-password", USER.1);
    let of_file = |command: &mut Command| {
        command.env("KPULSE_GATEWAY__KAFKA__PROPERTY_FILES__SASL_PASSWORD", &in_file);
    };
    for (part, access) in [&way.access, &by_certificate, &plain].into_iter().enumerate() {
        let file = way.file(EVENTS * part..EVENTS * (part + 1), crate::pair::event);
        let mut forward = way.command_with(access, "forward");
        if part == 2 {
            of_file(&mut forward);
        }
        let sent = run(forward.arg("--input").arg(&file));
        assert_eq!(
            sent.stdout,
            format!("{EVENTS} events sent, 0 wait in the spool, 0 dropped\n"),
            "{}",
            sent.stderr
        );
        let mut index = way.command_with(access, "index");
        if part == 2 {
            of_file(&mut index);
        }
        let mut index = Service::start(&mut index);
        way.holds_each_once(EVENTS * (part + 1));
        keeps_secrets(&metrics(&index));
        assert_eq!(index.stop(), Some(0));
        assert!(!index.stderr().contains("level=error"), "{}", index.stderr());
        keeps_secrets(&index.stderr());
    }
    for subcommand in [&["setup", "--dry-run"][..], &["check"]] {
        let mut command = way.command_with(&plain, subcommand[0]);
        of_file(&mut command);
        let ended = run(command.args(&subcommand[1..]));
        keeps_secrets(&format!("{}{}", ended.stdout, ended.stderr));
        // Whether each probe works here is not the question.
        assert!(
            subcommand == ["check"] || ended.stdout.matches(" is there already").count() == 10,
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn whoever_kafka_does_not_let_in_says_why_and_loses_nothing() {
    let secured = match secured() {
        Ok(secured) => secured,
        Err(why) => return skip("whoever_kafka_does_not_let_in", &why),
    };
    let way = Way::with("kafka-refuses", secured.access());
    let at = |brokers: &str, properties: Change<'_>| Access {
        brokers: brokers.to_owned(),
        ..changed(&way.access, properties, &[])
    };
    let (port, ssl) = (secured.kafka.rsplit_once(':').unwrap().1, ("security.protocol", "ssl".to_owned()));
    let cases = [
        (at(&secured.kafka, &[("sasl.password", WRONG.to_owned())]), &["uthentication", "sasl.password"][..]),
        (
            at(&secured.kafka, &[("ssl.ca.location", secured.file("stranger.pem"))]),
            &["verify failed", "ssl.ca.location"],
        ),
        (
            at(&format!("localhost:{port}"), &[("broker.address.family", "v4".to_owned())]),
            &["localhost", "kafka.brokers"],
        ),
        (at(&secured.kafka_expired, std::slice::from_ref(&ssl)), &["verify failed", "expired"]),
        (
            at(&secured.kafka_by_certificate, std::slice::from_ref(&ssl)),
            &["bad certificate", "ssl.certificate.location"],
        ),
        (at(&secured.kafka, &[("security.protocol", "plaintext".to_owned())]), &["security.protocol"]),
        (at(&secured.kafka_plain, std::slice::from_ref(&ssl)), &["security.protocol"]),
        (at("nobody.invalid:9092", &[]), &["nobody.invalid", "kafka.brokers"]),
    ];
    let states = cases.each_ref().map(|_| tempfile::tempdir().unwrap());
    let mut services: Vec<_> = (0..cases.len())
        .map(|case| {
            let file = way.file(EVENTS * case..EVENTS * (case + 1), crate::pair::event);
            let its = states[case].path().join("events.ndjson");
            std::fs::rename(file, &its).unwrap();
            let mut forward = way.command_with(&cases[case].0, "forward");
            forward.env("KPULSE_STATE_DIR", states[case].path()).arg("--input").arg(&its);
            [Service::start(&mut forward), Service::start(&mut way.command_with(&cases[case].0, "index"))]
        })
        .collect();
    for ((_, words), [forward, index]) in cases.iter().zip(&services) {
        for service in [forward, index] {
            one_error(service, words);
        }
        assert_eq!(metric(index, "kpulse_sink_up{sink=\"kafka\"}"), 0);
        keeps_secrets(&metrics(index));
    }
    all_stop(services.as_flattened_mut());
    // What each has in its spool goes on its way when it is let in.
    let none = secured.secret("none", "");
    std::fs::write(&none, "").unwrap();
    let mut services: Vec<_> = states
        .iter()
        .map(|state| {
            let mut forward = way.command_with(&way.access, "forward");
            Service::start(forward.env("KPULSE_STATE_DIR", state.path()).args(["--input", &none]))
        })
        .collect();
    for forward in &mut services {
        assert_eq!(forward.wait().code(), Some(0), "{}", forward.stderr());
    }
    let _index = way.index();
    way.holds_each_once(EVENTS * cases.len());
}

#[test]
fn whoever_elasticsearch_does_not_let_in_says_why_and_loses_nothing() {
    let secured = match secured() {
        Ok(secured) => secured,
        Err(why) => return skip("whoever_elasticsearch_does_not_let_in", &why),
    };
    let way = Way::with("refuses", secured.access());
    way.send(&way.events(EVENTS));
    let with = |elasticsearch: Change<'_>| changed(&way.access, &[], elasticsearch);
    let (port, key) = (secured.elasticsearch.rsplit_once(':').unwrap().1, secured.api_key("1ms"));
    let user = [("USERNAME", USER.0.to_owned()), ("PASSWORD", WRONG.to_owned())];
    let cases = [
        (with(&user), &["401", "unable to authenticate", "password_file"][..]),
        (with(&[("API_KEY", "bm86bm9uZQ==".to_owned())]), &["401", "elasticsearch.api_key"]),
        (with(&[("API_KEY", key.clone())]), &["401", "expired", "elasticsearch.api_key"]),
        (with(&[("CA_FILE", secured.file("stranger.pem"))]), &["UnknownIssuer", "elasticsearch.ca_file"]),
        (
            Access { url: format!("https://localhost:{port}"), ..way.access.clone() },
            &["localhost", "127.0.0.1", "elasticsearch.url"],
        ),
        (
            with(&[("CERTIFICATE_FILE", String::new()), ("KEY_FILE", String::new())]),
            &["BadCertificate", "elasticsearch.certificate_file"],
        ),
        (Access { url: format!("http://{}", secured.elasticsearch), ..way.access.clone() }, &["https://"]),
        (
            Access { url: format!("https://{}", secured.kafka_plain), ..way.access.clone() },
            &["elasticsearch.url"],
        ),
    ];
    // Each has a group of its own, so each has all events.
    let start = |case: usize, access: &Access| {
        let mut index = way.command_with(access, "index");
        Service::start(index.env("KPULSE_GATEWAY__KAFKA__GROUP", format!("refuses-{case}")))
    };
    let mut services: Vec<_> =
        cases.iter().enumerate().map(|(case, (access, _))| start(case, access)).collect();
    for ((_, words), index) in cases.iter().zip(&services) {
        one_error(index, words);
        assert_eq!(metric(index, "kpulse_sink_up{sink=\"elasticsearch\"}"), 0);
        keeps_secrets(&metrics(index));
        assert!(!metrics(index).contains(&key));
    }
    assert_eq!(way.count(), 0);
    // One is let in without a new start.
    let arrived = |index: &Service| {
        metric(index, "kpulse_index_documents_total") + metric(index, "kpulse_index_duplicates_total")
    };
    secured.set_password(WRONG);
    within(LONG, "documents", || (arrived(&services[0]) == EVENTS as u64).then_some(()));
    secured.set_password(USER.1);
    assert_eq!(metric(&services[0], "kpulse_sink_up{sink=\"elasticsearch\"}"), 1);
    all_stop(&mut services);
    assert!(services.iter().all(|service| !service.stderr().contains(&key)));
    let services: Vec<_> = (1..cases.len()).map(|case| start(case, &way.access)).collect();
    for index in &services {
        within(LONG, "events that were not lost", || (arrived(index) == EVENTS as u64).then_some(()));
    }
    way.holds_each_once(EVENTS);
}

#[test]
fn a_certificate_that_expired_is_named_and_its_renewal_is_enough() {
    let secured = match secured() {
        Ok(secured) => secured,
        Err(why) => return skip("a_certificate_that_expired", &why),
    };
    let way = Way::with("expired", secured.access());
    way.send(&way.events(EVENTS));
    let expired = secured.expired();
    let said = run(&mut way.command_with(&way.access, "setup")).stderr;
    assert!(said.contains("xpired") && said.contains("renew"), "{said}");
    let index = way.index();
    one_error(&index, &["xpired", "renew"]);
    assert_eq!(metric(&index, "kpulse_sink_up{sink=\"elasticsearch\"}"), 0);
    drop(expired);
    within(LONG, "documents", || {
        (metric(&index, "kpulse_index_documents_total") == EVENTS as u64).then_some(())
    });
    way.holds_each_once(EVENTS);
}
