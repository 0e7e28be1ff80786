//! What goes a way of its own: through a topic of its own into a data stream of its own.

/// A kind of document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Dataset {
    /// What crossed a threshold.
    Events,
    /// Where CPU time went.
    Profiles,
}

impl Dataset {
    /// All of them, each at the place of its number.
    pub const ALL: [Self; 2] = [Self::Events, Self::Profiles];

    /// Its name, as in that of its data stream.
    pub fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Profiles => "profiles",
        }
    }

    /// What one document of it is called.
    pub fn document(self) -> &'static str {
        match self {
            Self::Events => "event",
            Self::Profiles => "profile",
        }
    }
}
