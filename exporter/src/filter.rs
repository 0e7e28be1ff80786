//! Which collectors does this request want? `?collect[]=` and `?exclude[]=`, as node_exporter answers them.

use kpulse_common::http::{Request, Response, text};
use std::collections::BTreeSet;

/// The collectors that a scrape runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    All,
    Only(BTreeSet<String>),
    Except(BTreeSet<String>),
}

impl Filter {
    /// The filter of a request; an error is the answer to give.
    ///
    /// `state` says whether a collector is enabled, `None` for one that does not exist.
    pub fn of(request: &Request, state: impl Fn(&str) -> Option<bool>) -> Result<Self, Box<Response>> {
        let all = |name| request.values(name).map(str::to_owned).collect::<BTreeSet<_>>();
        let (collect, exclude) = (all("collect[]"), all("exclude[]"));
        if !collect.is_empty() && !exclude.is_empty() {
            return refuse("Combined collect and exclude queries are not allowed.".to_owned());
        }
        for name in &collect {
            let why = match state(name) {
                Some(true) => continue,
                Some(false) => "disabled",
                None => "missing",
            };
            return refuse(format!(
                "Couldn't create filtered metrics handler: couldn't create collector: {why} collector: {name}"
            ));
        }
        Ok(match (collect.is_empty(), exclude.is_empty()) {
            (true, true) => Self::All,
            (false, _) => Self::Only(collect),
            (true, false) => Self::Except(exclude),
        })
    }

    /// Whether this collector runs.
    pub fn takes(&self, collector: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(collector),
            Self::Except(names) => !names.contains(collector),
        }
    }
}

fn refuse(body: String) -> Result<Filter, Box<Response>> {
    Err(Box::new(text(400, body)))
}
