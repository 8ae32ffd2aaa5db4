//! What a new version leaves alone: files whose answers are not asked for are carried over from the version on
//! disk. So a value that cannot be read any more stands in the way of no other, and a replaced credential
//! costs one request, however many objects are beside it.
//!
//! What is not carried over is rendered, and so needs every answer it follows from: `needed` says which must
//! be asked for, `held` which are kept in memory because they could not be had again without doing something.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::volume::{Dependency, Mode, Need};
use crate::spec::{
    DependencyId, Object, VolumeSpec,
    object::{Part, Source},
};

/// Every answer that a file follows from. A template may name any input of the list, and a keystore's password
/// may be one.
fn feeds(spec: &VolumeSpec, object: &Object) -> BTreeSet<DependencyId> {
    let takes_inputs =
        matches!(object.source, Source::Template(_) | Source::Secret { part: Part::Keystore { .. }, .. });
    let inputs = spec.objects.iter().filter(|other| takes_inputs && other.is_input());
    std::iter::once(object).chain(inputs).flat_map(Object::requests).map(|request| request.id()).collect()
}

fn files(spec: &VolumeSpec) -> impl Iterator<Item = (&Object, BTreeSet<DependencyId>)> {
    let files = spec.objects.iter().filter(|object| !object.is_input());
    files.map(|object| (object, feeds(spec, object)))
}

/// Whether a file can be read back: root without CAP_DAC_OVERRIDE may not read what it gave to another, and which
/// files of the volume itself are a secret's own is not known without its keys.
fn is_readable(spec: &VolumeSpec, object: &Object) -> bool {
    let ours = object.owner.and_then(|owner| owner.uid).is_none_or(|uid| uid == 0);
    object.file().is_some() && ours && object.mode.unwrap_or(spec.default_mode).bits() & 0o400 != 0
}

/// What must be asked for so that every file that shows one of `anew` can be rendered: `anew`, and what is shown
/// beside it and not held. `is_held` knows the answers in memory.
pub(super) fn needed(
    spec: &VolumeSpec,
    mut anew: BTreeSet<DependencyId>,
    is_held: impl Fn(&DependencyId) -> bool,
) -> BTreeSet<DependencyId> {
    let files: Vec<_> = files(spec).collect();
    loop {
        let before = anew.len();
        for (object, feeds) in &files {
            if !is_readable(spec, object) || !feeds.is_disjoint(&anew) {
                anew.extend(feeds.iter().filter(|id| !is_held(id)).copied());
            }
        }
        if anew.len() == before {
            return anew;
        }
    }
}

/// Makes an attempt ask for what it needs since some of its answers came to be asked for anew.
pub(super) fn widen(spec: &VolumeSpec, needs: &mut BTreeMap<DependencyId, Need>) {
    let asked = needs.iter().filter(|(_, need)| !matches!(need, Need::Reuse | Need::Carried));
    let asked = asked.map(|(id, _)| *id).collect();
    let wanted = needed(spec, asked, |id| !matches!(needs.get(id), Some(Need::Carried)));
    for id in wanted {
        needs.entry(id).and_modify(|need| {
            if matches!(need, Need::Carried) {
                *need = Need::Wanted;
            }
        });
    }
}

/// Which answers stay in memory while the volume lives: those whose request does something, and those that
/// a file cannot be rendered again without.
pub(super) fn held(
    spec: &VolumeSpec,
    mode: Mode,
    dependencies: &BTreeMap<DependencyId, Box<Dependency>>,
) -> BTreeSet<DependencyId> {
    let effects = dependencies.iter().filter(|(_, known)| known.has_side_effect()).map(|(id, _)| *id);
    let effects: BTreeSet<DependencyId> = effects.collect();
    let mut held = effects.clone();
    for (object, feeds) in files(spec) {
        // What the driver wrote is not ours to read back.
        if mode == Mode::DriverWritten || !is_readable(spec, object) || !feeds.is_disjoint(&effects) {
            held.extend(feeds);
        }
    }
    held
}

/// Whether a file that shows `id` can be carried over while the rest is made anew: not when it shows what is
/// replaced as well, for then it would go on to show what dies.
pub(super) fn can_stay(
    spec: &VolumeSpec,
    id: DependencyId,
    is_replaced: impl Fn(&DependencyId) -> bool,
) -> bool {
    files(spec)
        .filter(|(_, feeds)| feeds.contains(&id))
        .all(|(object, feeds)| is_readable(spec, object) && !feeds.iter().any(&is_replaced))
}

/// Splits a plan into what is rendered and the objects whose files are carried over.
pub(super) fn split(
    spec: &Arc<VolumeSpec>,
    needs: &BTreeMap<DependencyId, Need>,
) -> (Arc<VolumeSpec>, Vec<Object>) {
    let is_carried = |id: &DependencyId| matches!(needs.get(id), Some(Need::Carried));
    if !needs.keys().any(is_carried) {
        return (Arc::clone(spec), Vec::new());
    }
    let carried: Vec<Object> = files(spec)
        .filter(|(_, feeds)| feeds.iter().any(is_carried))
        .map(|(object, _)| object.clone())
        .collect();
    let mut rendered = VolumeSpec::clone(spec);
    rendered.objects.retain(|object| match object.is_input() {
        false => !carried.contains(object),
        // What is not at hand feeds no file that is rendered.
        true => !object.requests().any(|request| is_carried(&request.id())),
    });
    (Arc::new(rendered), carried)
}

/// The versions of all objects in the order of the plan: those rendered, and the former ones of the carried.
pub(super) fn versions(
    spec: &VolumeSpec,
    rendered: Vec<(String, String)>,
    former: &[(String, String)],
) -> Vec<(String, String)> {
    let all = || rendered.iter().chain(former);
    let files = spec.objects.iter().filter(|object| !object.is_input());
    files.filter_map(|object| all().find(|(name, _)| name == object.name()).cloned()).collect()
}
