//! `kpulse-event-gateway setup`: the topics and the index template, made where they are missing.

use crate::config::Config;
use crate::mapping;
use crate::sink::elasticsearch::{Client, ElasticsearchConfig};
use crate::sink::kafka::create_topics;
use anyhow::{Context, Result, anyhow};
use hyper::Method;
use kpulse_common::cli::{CommonFlags, Usage};
use kpulse_common::logging;
use serde_json::{Value, json};
use std::io::Write;

/// What the data stream's mappings are called in the cluster.
const MAPPINGS: &str = "kpulse-events-mappings";
const SHARED: &str = "kpulse-shared-mappings";
const SETTINGS: &str = "kpulse-events-settings";
/// Where Elasticsearch has its lifecycle policies.
const POLICY: &str = "_ilm/policy";

/// Flags of `setup`.
#[derive(clap::Args, Debug)]
pub struct SetupFlags {
    /// Only print what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// Sets up what is configured: Kafka, Elasticsearch, or both.
pub fn run(common: &CommonFlags, flags: &SetupFlags) -> Result<()> {
    let config = Config::load(common, Vec::new())?;
    logging::init(config.log.level, config.log.format)?;
    if config.kafka.brokers.is_empty() && config.elasticsearch.url.is_empty() {
        return Err(
            Usage("nothing to set up: set kafka.brokers, elasticsearch.url or both".to_owned()).into()
        );
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        if !config.kafka.brokers.is_empty() {
            topics(&config, flags.dry_run).await?;
        }
        if !config.elasticsearch.url.is_empty() {
            templates(&config, flags.dry_run).await?;
        }
        Ok(())
    })
}

async fn topics(config: &Config, is_dry_run: bool) -> Result<()> {
    for topic in create_topics(&config.kafka, is_dry_run).await? {
        let (name, partitions) = (&topic.name, topic.partitions);
        let retention = humantime::format_duration(topic.retention);
        say(
            topic.exists,
            is_dry_run,
            &format!("topic {name}"),
            &format!(" with {partitions} partitions, kept {retention}"),
        )?;
    }
    Ok(())
}

async fn templates(config: &Config, is_dry_run: bool) -> Result<()> {
    let client = Client::new(&config.elasticsearch)?;
    for (path, body) in bodies(&config.elasticsearch) {
        let exists = is_there(&client, &path, &body).await?;
        if !exists && !is_dry_run {
            let answer = client.json(Method::PUT, &format!("/{path}"), Some(&body)).await?;
            if answer.status != 200 {
                return Err(anyhow!(
                    "Elasticsearch refuses {path} (status {}): {}",
                    answer.status,
                    answer.shown()
                ));
            }
        }
        say(exists, is_dry_run, &path, "")?;
    }
    Ok(())
}

fn say(exists: bool, is_dry_run: bool, what: &str, how: &str) -> Result<()> {
    let line = match (exists, is_dry_run) {
        (true, _) => format!("{what} is there already"),
        (false, true) => format!("{what}{how} would be made"),
        (false, false) => format!("{what}{how} is made"),
    };
    writeln!(std::io::stdout(), "{line}").context("cannot write to stdout")
}

/// What is put, in this order: a template names its components, and the settings name the policy.
fn bodies(config: &ElasticsearchConfig) -> Vec<(String, Value)> {
    let mut index = json!({"codec": "best_compression"});
    let mut bodies = Vec::new();
    if !config.lifecycle_policy.is_empty() {
        index["lifecycle"] = json!({ "name": config.lifecycle_policy });
        bodies.push((format!("{POLICY}/{}", config.lifecycle_policy), lifecycle(config)));
    }
    let mut component = |name: &str, template: Value| {
        bodies.push((format!("_component_template/{name}"), json!({ "template": template })));
    };
    component(MAPPINGS, mapping::template()["template"].take());
    component(SHARED, json!({"mappings": mapping::shared()}));
    component(SETTINGS, json!({"settings": {"index": index}}));
    for dataset in mapping::DATASETS {
        let (mut template, components) = match dataset {
            "events" => (mapping::head(dataset), json!([MAPPINGS, SETTINGS])),
            // Its types are nobody else's, so they stand in it.
            "profiles" => (mapping::profiles(), json!([SETTINGS])),
            _ => (mapping::head(dataset), json!([SHARED, SETTINGS])),
        };
        template["composed_of"] = components;
        bodies.push((format!("_index_template/kpulse-{dataset}"), template));
    }
    bodies
}

/// Indices of a day, or of the size that Elasticsearch advises, which are deleted when they are too old.
fn lifecycle(config: &ElasticsearchConfig) -> Value {
    let retention = format!("{}s", config.lifecycle_retention.as_secs());
    json!({"policy": {"phases": {
        "hot": {"actions": {"rollover": {"max_age": "1d", "max_primary_shard_size": "50gb"}}},
        "delete": {"min_age": retention, "actions": {"delete": {}}},
    }}})
}

/// Whether the cluster has it in this form. What it adds of its own does not count.
async fn is_there(client: &Client, path: &str, body: &Value) -> Result<bool> {
    let answer = client.json(Method::GET, &format!("/{path}"), None).await?;
    match answer.status {
        404 => Ok(false),
        // A policy that has the name is what was asked for, whatever it says.
        200 if path.starts_with(POLICY) => Ok(true),
        200 => {
            let answer = answer.json()?;
            let (list, inner) = match path.split('/').next() {
                Some("_index_template") => ("index_templates", "index_template"),
                _ => ("component_templates", "component_template"),
            };
            Ok(holds(&answer[list][0][inner], body))
        }
        status => Err(anyhow!("Elasticsearch does not tell of {path} (status {status}): {}", answer.shown())),
    }
}

/// Whether every field of `wanted` is in `found`.
fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted.iter().all(|(name, value)| {
            // An empty object need not come back.
            found.get(name).map_or_else(
                || value.as_object().is_some_and(serde_json::Map::is_empty),
                |found| holds(found, value),
            )
        }),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len()
                && found.iter().zip(wanted).all(|(found, wanted)| holds(found, wanted))
        }
        // Settings come back as text.
        (Value::String(found), Value::Number(wanted)) => {
            found.parse::<serde_json::Number>().is_ok_and(|found| found == *wanted)
        }
        (Value::String(found), Value::Bool(wanted)) => found.parse() == Ok(*wanted),
        _ => found == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cluster_adds_is_no_difference_and_what_it_lacks_is_one() {
        let wanted = json!({"a": {"b": 1, "c": ["x"]}, "d": {}});
        assert!(holds(&json!({"a": {"b": "1", "c": ["x"], "more": 2}}), &wanted));
        for other in [json!({}), json!({"a": {"b": 2, "c": ["x"]}}), json!({"a": {"b": 1, "c": ["x", "y"]}})]
        {
            assert!(!holds(&other, &wanted), "{other}");
        }
    }

    #[test]
    fn a_lifecycle_is_made_and_named_only_if_it_is_wanted() {
        let text = |policy: &str| {
            let config = ElasticsearchConfig { lifecycle_policy: policy.to_owned(), ..Default::default() };
            let bodies = bodies(&config);
            bodies.into_iter().map(|(path, body)| format!("{path} {body}")).collect::<Vec<_>>().join("\n")
        };
        assert!(!text("").contains("lifecycle") && !text("").contains("_ilm"));
        let made = text("kpulse");
        assert!(
            made.starts_with("_ilm/policy/kpulse {") && made.contains(r#""min_age":"2592000s""#),
            "{made}"
        );
        assert!(made.contains(r#""lifecycle":{"name":"kpulse"}"#), "{made}");
    }

    #[test]
    fn each_dataset_has_a_template_whose_components_come_before_it() {
        let bodies = bodies(&ElasticsearchConfig::default());
        let at = |path: &str| bodies.iter().position(|(other, _)| other == path).unwrap();
        for dataset in ["events", "profiles", "camera"] {
            let (path, template) = &bodies[at(&format!("_index_template/kpulse-{dataset}"))];
            assert_eq!(template["index_patterns"], json!([format!("logs-kpulse.{dataset}-*")]));
            for component in template["composed_of"].as_array().unwrap() {
                let component = format!("_component_template/{}", component.as_str().unwrap());
                assert!(at(&component) < at(path), "{component}");
            }
        }
    }
}
