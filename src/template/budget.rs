//! What a render may spend.

use std::cell::Cell;

use super::{Limit, Limits, fault::Fault};

/// Counts down; shared by everything of one render.
pub(super) struct Budget {
    work: Cell<usize>,
    rounds: Cell<u64>,
    /// Longest text or list a function may make.
    largest: usize,
}

impl Budget {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            work: Cell::new(limits.work_bytes),
            rounds: Cell::new(limits.range_iterations),
            largest: limits.output_bytes,
        }
    }

    /// Pays for `bytes` read, made or compared.
    pub(super) fn work(&self, bytes: usize) -> Result<(), Fault> {
        let left = self.work.get().checked_sub(bytes).ok_or(Fault::Limit(Limit::Work))?;
        self.work.set(left);
        Ok(())
    }

    /// Pays for one round of a range.
    pub(super) fn round(&self) -> Result<(), Fault> {
        let left = self.rounds.get().checked_sub(1).ok_or(Fault::Limit(Limit::RangeIterations))?;
        self.rounds.set(left);
        self.work(8)
    }

    /// Refuses a text of `bytes` before it is made, and pays for it.
    pub(super) fn allows(&self, bytes: usize) -> Result<(), Fault> {
        if bytes > self.largest { Err(Fault::Limit(Limit::OutputBytes)) } else { self.work(bytes) }
    }

    /// An empty text to write to.
    pub(super) fn buffer(&self) -> Buffer<'_> {
        Buffer { budget: self, bytes: Vec::new() }
    }
}

/// A text that is paid for as it grows.
pub(super) struct Buffer<'a> {
    budget: &'a Budget,
    bytes: Vec<u8>,
}

impl Buffer<'_> {
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.bytes.len() + bytes.len() > self.budget.largest {
            return Err(Fault::Limit(Limit::OutputBytes));
        }
        self.budget.work(bytes.len() + 1)?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
