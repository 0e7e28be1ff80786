//! Profiles as other programs read them: [`folded`] lines and [`svg`] flame graphs, and the [`file`] they go to.

pub mod file;
pub mod folded;
pub mod svg;
