//! Who goes next: pods that wait before upkeep, and of those the namespaces in turn, so that one namespace's
//! burst costs another at most one request's wait per free place.

use std::collections::{BTreeMap, VecDeque};

use crate::lifecycle::message::Lane;

/// Requests in flight per node: what protects the server from one node.
pub(super) const IN_FLIGHT: usize = 64;
/// Of them for upkeep: the rest is kept for pods that wait.
const BACKGROUND: usize = 16;
/// Of them for one namespace's pods: a server that hangs for one tenant's paths must not hold every place.
const PER_NAMESPACE: usize = 24;

/// A queue of jobs with bounded places.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    /// Namespaces with waiting jobs, in the order of their turns.
    turns: VecDeque<String>,
    waiting: BTreeMap<String, VecDeque<T>>,
    background: VecDeque<T>,
    running: BTreeMap<String, usize>,
    running_background: usize,
}

/// What a job took, to be given back when it ends.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Foreground(String),
    Background,
}

impl<T> FairQueue<T> {
    pub(super) const fn new() -> Self {
        Self {
            turns: VecDeque::new(),
            waiting: BTreeMap::new(),
            background: VecDeque::new(),
            running: BTreeMap::new(),
            running_background: 0,
        }
    }

    pub(super) fn push(&mut self, lane: Lane, namespace: &str, job: T) {
        match lane {
            Lane::Background => self.background.push_back(job),
            Lane::Foreground => {
                let jobs = self.waiting.entry(namespace.to_owned()).or_default();
                if jobs.is_empty() {
                    self.turns.push_back(namespace.to_owned());
                }
                jobs.push_back(job);
            }
        }
    }

    /// The next job that may start, with the place it takes.
    pub(super) fn pop(&mut self) -> Option<(Place, T)> {
        let running: usize = self.running.values().sum::<usize>() + self.running_background;
        if running >= IN_FLIGHT {
            return None;
        }
        for _ in 0..self.turns.len() {
            let namespace = self.turns.pop_front()?;
            let full = self.running.get(&namespace).is_some_and(|count| *count >= PER_NAMESPACE);
            let Some(jobs) = self.waiting.get_mut(&namespace) else { continue };
            let job = if full { None } else { jobs.pop_front() };
            if jobs.is_empty() {
                self.waiting.remove(&namespace);
            } else {
                self.turns.push_back(namespace.clone());
            }
            if let Some(job) = job {
                *self.running.entry(namespace.clone()).or_default() += 1;
                return Some((Place::Foreground(namespace), job));
            }
        }
        if self.running_background < BACKGROUND
            && let Some(job) = self.background.pop_front()
        {
            self.running_background += 1;
            return Some((Place::Background, job));
        }
        None
    }

    pub(super) fn give_back(&mut self, place: &Place) {
        match place {
            Place::Background => self.running_background -= 1,
            Place::Foreground(namespace) => {
                if let Some(count) = self.running.get_mut(namespace) {
                    *count -= 1;
                    if *count == 0 {
                        self.running.remove(namespace);
                    }
                }
            }
        }
    }

    /// Jobs that wait: for pods, and of upkeep.
    pub(super) fn depth(&self) -> (usize, usize) {
        (self.waiting.values().map(VecDeque::len).sum(), self.background.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks until each of the quiet namespace's jobs is done, when a noisy one put 1,000 before it, each
    /// job takes ten ticks, and there are as many places as in production.
    fn waits(
        mut next: impl FnMut() -> Option<(Option<Place>, &'static str)>,
        mut ended: impl FnMut(Place),
    ) -> Vec<u32> {
        let mut running: Vec<(u32, Option<Place>, &'static str)> = Vec::new();
        let mut waits = Vec::new();
        for tick in 0..1000 {
            while running.len() < IN_FLIGHT
                && let Some((place, whose)) = next()
            {
                running.push((tick + 10, place, whose));
            }
            let (done, rest): (Vec<_>, Vec<_>) = running.into_iter().partition(|(at, ..)| *at <= tick);
            running = rest;
            for (_, place, whose) in done {
                place.into_iter().for_each(&mut ended);
                if whose == "quiet" {
                    waits.push(tick);
                }
            }
        }
        waits
    }

    /// The same where our queue says what is next: of jobs with their lane and namespace, in this order.
    fn waits_in_turn(jobs: impl Iterator<Item = (Lane, &'static str, &'static str)>) -> Vec<u32> {
        let queue = std::cell::RefCell::new(FairQueue::new());
        jobs.for_each(|(lane, namespace, whose)| queue.borrow_mut().push(lane, namespace, whose));
        waits(
            || queue.borrow_mut().pop().map(|(place, whose)| (Some(place), whose)),
            |place| queue.borrow_mut().give_back(&place),
        )
    }

    #[test]
    fn noisy_neighbour_p99() {
        let mut fifo: VecDeque<&str> = std::iter::repeat_n("noisy", 1000).chain(["quiet"; 20]).collect();
        let without = waits(|| fifo.pop_front().map(|whose| (None, whose)), |_| {});
        let due = std::iter::repeat_n("noisy", 1000).chain(["quiet"; 20]);
        let with = waits_in_turn(due.map(|whose| (Lane::Foreground, whose, whose)));
        assert_eq!((without.len(), with.len()), (20, 20));
        let (without, with) = (without.iter().max().expect("20"), with.iter().max().expect("20"));
        assert!(*without >= 160, "in one line the quiet namespace waits for all of the noisy one: {without}");
        assert!(*with <= 11, "in turn it waits for one round: {with}");
    }

    /// ESO#5045: refreshes starve what is new. Here 1,000 checks are due when 20 pods come.
    #[test]
    fn new_mount_lane_p99() {
        let due = std::iter::repeat_n("upkeep", 1000).chain(["quiet"; 20]);
        let mut fifo: VecDeque<&str> = due.clone().collect();
        let without = waits(|| fifo.pop_front().map(|whose| (None, whose)), |_| {});
        let lane = |whose| if whose == "upkeep" { Lane::Background } else { Lane::Foreground };
        let with = waits_in_turn(due.map(|whose| (lane(whose), "prod", whose)));
        assert_eq!((without.len(), with.len()), (20, 20));
        let (without, with) = (without.iter().max().expect("20"), with.iter().max().expect("20"));
        assert!(*without >= 160, "in one line a pod waits for all that is due: {without}");
        assert_eq!(*with, 10, "in a lane of its own it waits for nothing but its own request");
    }

    #[test]
    fn a_hanging_tenant_and_upkeep_leave_places_for_others() {
        let mut queue = FairQueue::new();
        for job in 0..200 {
            queue.push(Lane::Foreground, "hanging", job);
            queue.push(Lane::Background, "any", job);
        }
        let mut places = Vec::new();
        while let Some((place, _)) = queue.pop() {
            places.push(place);
        }
        assert_eq!(places.len(), PER_NAMESPACE + BACKGROUND, "nothing of either ever ends");
        queue.push(Lane::Foreground, "other", 1);
        assert!(matches!(queue.pop(), Some((Place::Foreground(namespace), 1)) if namespace == "other"));
        for place in &places {
            queue.give_back(place);
        }
        assert!(queue.pop().is_some());
        assert_eq!(queue.depth(), (200 - PER_NAMESPACE - 1, 200 - BACKGROUND));
    }
}
