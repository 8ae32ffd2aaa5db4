//! The rendering library as a whole: Go templates against what Go makes of them, file formats read back by
//! the tools that read them.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

#[path = "render/corpus.rs"]
mod corpus;
#[path = "render/formats.rs"]
mod formats;
#[path = "render/properties.rs"]
mod properties;
