//! Is memory free but in pieces too small? Free blocks by size: `/proc/buddyinfo`.

use super::{Host, HostCollector};
use anyhow::{Context, bail};
use kpulse_common::metric::{Label, MetricDef, Samples};

const FREE_BLOCKS: MetricDef = MetricDef::gauge(
    "kpulse_buddy_free_blocks",
    "Free blocks of 2^order pages.",
    &[Label::Named("node"), Label::Named("zone"), Label::Named("order")],
);

pub const COLLECTOR: HostCollector =
    HostCollector { name: "buddy", metrics: &[FREE_BLOCKS], is_default: true, make: |_| Box::new(collect) };

fn collect(host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
    let path = host.paths.procfs.join("buddyinfo");
    for line in host.text.read(&path)?.lines() {
        let zone = Zone::parse(line).with_context(|| format!("buddyinfo holds {line:?}"))?;
        for (order, blocks) in zone.blocks.iter().enumerate() {
            out.count(&FREE_BLOCKS, &[zone.node, zone.name, &order.to_string()], *blocks);
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq)]
struct Zone<'a> {
    node: &'a str,
    name: &'a str,
    blocks: Vec<u64>,
}

impl<'a> Zone<'a> {
    /// `Node 0, zone   Normal   9834   7127 …`.
    fn parse(line: &'a str) -> anyhow::Result<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (Some("Node"), Some(node), Some("zone"), Some(name)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            bail!("which is no zone");
        };
        let blocks = fields.map(str::parse).collect::<Result<Vec<_>, _>>().context("which has no numbers")?;
        Ok(Self { node: node.trim_end_matches(','), name, blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_zone() {
        let zone = Zone::parse("Node 1, zone   Normal   9834   7127      0 ").unwrap();
        assert_eq!(zone, Zone { node: "1", name: "Normal", blocks: vec![9834, 7127, 0] });
        assert!(Zone::parse("Node 1, zone").is_err());
        assert!(Zone::parse("Node 1, zone DMA 1 x").is_err());
    }
}
