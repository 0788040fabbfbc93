//! New images out of old ones, as far as the loop is concerned: ask which recipe an image has, collect it like any
//! artifact, look through the old images, put together what can be, and let the swarm fetch the rest.
//!
//! Invariants: the swarm waits for it a bounded time and only where this node holds another image; whatever goes wrong, the
//! image is fetched as if it had no recipe; a piece that was put together is told to the swarm only when it is durable.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use firmesh_executors::JournalError;
use firmesh_node_core::swarm::{self, Source};
use firmesh_protocol::{
    chunk::{PieceLayout, decode_groups},
    groups::Groups,
    ids::ArtifactId,
    manifest::{Artifact, Priority},
    pieces::PieceSet,
    recipe::{RECIPE_BYTES_MAX, RECIPE_IMAGE_BYTES_MAX},
    time::Timestamp,
};
use futures_util::{StreamExt as _, stream};
use tracing::{debug, info};

use super::{Brought, Chain, Event, PieceError, Runtime, Sha256Check, Tracked};
use crate::{
    delta::{DELTA_BYTES_MIN, DeltaError, Plan, RECIPE_HOLD, hold},
    store::{ChunkStore, PutError, StoreError},
    transport::Transport,
    uplink::{Uplink, UplinkError},
};

/// Pieces put together at once: they share the barriers of the store.
const MADE_AT_ONCE: usize = 4;

/// Images that this node is about to have, and what of them is here in others.
#[derive(Default)]
pub(super) struct Deltas {
    by_image: BTreeMap<ArtifactId, Delta>,
    /// Whose recipe an artifact is.
    images: BTreeMap<ArtifactId, ArtifactId>,
}

struct Delta {
    layout: PieceLayout,
    /// Other images that are whole here.
    sources: Vec<(ArtifactId, u64)>,
    plan: Option<Arc<Plan>>,
    /// Pieces that are being put together, and until when they are waited for.
    reserved: PieceSet,
    reserved_until: Timestamp,
}

impl Deltas {
    pub(super) fn is_recipe(&self, artifact: &ArtifactId) -> bool {
        self.images.contains_key(artifact)
    }

    /// Answers whether it was one.
    pub(super) fn forget_recipe(&mut self, artifact: &ArtifactId) -> bool {
        self.images.remove(artifact).is_some()
    }

    pub(super) fn plan(&self, image: &ArtifactId) -> Option<Arc<Plan>> {
        self.by_image.get(image)?.plan.clone()
    }
}

/// How one piece was put together: how many bytes it has, or `None` if what was found is something else.
pub(super) type Made = Result<Option<u64>, StoreError>;

impl Runtime {
    /// An image is wanted: asks for its recipe, and reserves its pieces for a while if there is anything to make them of.
    pub(super) fn begin_delta(
        &mut self,
        image: ArtifactId,
        have: &PieceSet,
        sources: Vec<(ArtifactId, u64)>,
    ) -> Result<(), JournalError> {
        let Some(layout) = self.tracked.get(&image).map(|tracked| tracked.layout) else {
            return Ok(());
        };
        let has_recipe = (DELTA_BYTES_MIN..=RECIPE_IMAGE_BYTES_MAX).contains(&layout.length());
        let deltas = &mut self.deltas;
        if !has_recipe || have.is_full() || deltas.is_recipe(&image) || deltas.by_image.contains_key(&image) {
            return Ok(());
        }
        let recipes = |id: &ArtifactId| deltas.images.contains_key(id);
        let sources: Vec<_> = sources
            .into_iter()
            .filter(|(id, _)| *id != image && !recipes(id))
            .collect();
        let delta = Delta {
            layout,
            reserved: match sources.is_empty() {
                true => PieceSet::empty(layout.pieces()),
                false => PieceSet::full(layout.pieces()),
            },
            sources,
            plan: None,
            reserved_until: Timestamp::after_start(self.started.elapsed() + RECIPE_HOLD),
        };
        self.deltas.by_image.insert(image, delta);
        let uplink = self.uplink.clone();
        self.spawn(async move {
            let found = uplink.recipe(image).await;
            Event::RecipeNamed { image, found }
        });
        self.reserve(image)
    }

    pub(super) fn on_recipe_named(
        &mut self,
        image: ArtifactId,
        found: Result<Option<Artifact>, UplinkError>,
    ) -> Result<(), JournalError> {
        let recipe = match found {
            Ok(Some(recipe)) => recipe,
            Ok(None) => {
                debug!(%image, "an image has no recipe");
                return self.end_delta(image);
            }
            Err(error) => {
                debug!(%image, error = %Chain(&error), "it is not known which recipe an image has");
                self.name_misconduct(&error);
                return self.end_delta(image);
            }
        };
        let is_image = self.tracked.contains_key(&recipe.id) && !self.deltas.is_recipe(&recipe.id);
        if is_image || !(1..=RECIPE_BYTES_MAX).contains(&recipe.length) {
            let detail = format!(
                "the coordinator calls {} of {} bytes the recipe of artifact {image}: it is an image, or longer than \
                 {RECIPE_BYTES_MAX} bytes, or empty",
                recipe.id, recipe.length
            );
            self.refuse("recipe_unexpected", detail);
            return self.end_delta(image);
        }
        if self
            .deltas
            .images
            .insert(recipe.id, image)
            .is_some_and(|other| other != image)
        {
            // Two images with one recipe: at most one of them is told the truth, and the first has asked for it already.
            debug!(%image, recipe = %recipe.id, "a recipe is named for a second image");
        }
        let is_checked = |tracked: &Tracked| tracked.sha256_check == Sha256Check::Passed;
        if self.tracked.get(&recipe.id).is_some_and(is_checked) {
            self.recipe_is_here(recipe.id, recipe.length)?;
        }
        // It is small, and its image waits for it.
        self.collect(&recipe, Priority::Emergency)
    }

    /// A recipe is complete: looks through the old images, if there are any.
    pub(super) fn recipe_is_here(&mut self, recipe: ArtifactId, length: u64) -> Result<(), JournalError> {
        let Some(image) = self.deltas.images.get(&recipe).copied() else {
            return Ok(());
        };
        let elapsed = self.started.elapsed();
        let Some(delta) = self
            .deltas
            .by_image
            .get_mut(&image)
            .filter(|delta| delta.plan.is_none())
        else {
            return Ok(());
        };
        if delta.sources.is_empty() {
            self.deltas.by_image.remove(&image);
            return Ok(());
        }
        let (sources, layout) = (delta.sources.clone(), delta.layout);
        let hold = hold(layout.length());
        delta.reserved_until = Timestamp::after_start(elapsed + hold);
        let (store, until) = (Arc::clone(&self.store), Instant::now() + hold);
        self.spawn(async move {
            let plan = Plan::make(&*store, image, layout.length(), (recipe, length), sources, until).await;
            Event::Planned { image, plan }
        });
        self.reserve(image)
    }

    pub(super) fn on_planned(&mut self, image: ArtifactId, plan: Result<Plan, DeltaError>) -> Result<(), JournalError> {
        let plan = match plan {
            Ok(plan) => Arc::new(plan),
            Err(error) => {
                match &error {
                    DeltaError::Recipe { .. } => self.refuse(error.code(), Chain(&error).to_string()),
                    DeltaError::Unreadable { .. } => self.local_error(&error),
                }
                return self.end_delta(image);
            }
        };
        let Some(have) = self.swarm.have(&image).cloned() else {
            return self.end_delta(image);
        };
        let mut whole = plan.whole();
        have.iter().for_each(|piece| {
            whole.remove(piece);
        });
        info!(%image, pieces = whole.count(), of = have.total(), "an image was looked for in others");
        let until = Timestamp::after_start(self.started.elapsed() + hold(plan.layout().length()));
        if let Some(delta) = self.deltas.by_image.get_mut(&image) {
            (delta.plan, delta.reserved, delta.reserved_until) = (Some(Arc::clone(&plan)), whole.clone(), until);
        }
        let (store, events) = (Arc::clone(&self.store), self.events.clone());
        self.tasks.spawn(async move {
            let pieces: Vec<_> = whole.iter().collect();
            let mut made = stream::iter(pieces)
                .map(|piece| {
                    let (store, plan) = (&*store, &*plan);
                    async move { (piece, make(store, plan, image, piece).await) }
                })
                .buffer_unordered(MADE_AT_ONCE);
            while let Some((piece, made)) = made.next().await {
                let broken = made.is_err();
                // The loop stops listening only at shutdown.
                if events.send(Event::Made { image, piece, made }).await.is_err() || broken {
                    break;
                }
            }
        });
        self.reserve(image)
    }

    pub(super) fn on_made(&mut self, artifact: ArtifactId, piece: u32, made: Made) -> Result<(), JournalError> {
        match made {
            Ok(Some(bytes)) => {
                if self.swarm.have(&artifact).is_some_and(|have| !have.contains(piece)) {
                    self.traffic.reused += bytes;
                }
                self.tell_swarm(swarm::Input::Stored { artifact, piece })
            }
            Ok(None) => {
                if let Some(delta) = self.deltas.by_image.get_mut(&artifact) {
                    delta.reserved.remove(piece);
                }
                self.reserve(artifact)
            }
            Err(error) => {
                self.local_error(&error);
                if let Some(delta) = self.deltas.by_image.get_mut(&artifact) {
                    delta.reserved = PieceSet::empty(delta.layout.pieces());
                }
                self.reserve(artifact)
            }
        }
    }

    /// The image is whole, or nothing can be done for it: the rest of it, if there is any, is fetched.
    pub(super) fn end_delta(&mut self, image: ArtifactId) -> Result<(), JournalError> {
        let Some(delta) = self.deltas.by_image.remove(&image) else {
            return Ok(());
        };
        self.tell_swarm(swarm::Input::Reserve {
            artifact: image,
            pieces: PieceSet::empty(delta.layout.pieces()),
            until: delta.reserved_until,
        })
    }

    fn reserve(&mut self, image: ArtifactId) -> Result<(), JournalError> {
        let Some(delta) = self.deltas.by_image.get(&image) else {
            return Ok(());
        };
        let (pieces, until) = (delta.reserved.clone(), delta.reserved_until);
        self.tell_swarm(swarm::Input::Reserve {
            artifact: image,
            pieces,
            until,
        })
    }
}

/// Puts a piece together of which everything was found, and makes it durable.
async fn make(store: &dyn ChunkStore, plan: &Plan, image: ArtifactId, piece: u32) -> Made {
    let part = match plan.part(store, piece).await {
        Ok(part) => part,
        Err(error) => {
            debug!(%image, piece, %error, "a part of an old image cannot be read");
            plan.spoil(piece);
            return Ok(None);
        }
    };
    let Some(encoded) = plan.encode(piece, part, &[]) else {
        return Ok(None);
    };
    let range = plan.layout().bytes(piece);
    match store.put(image, plan.layout(), piece, encoded).await {
        Ok(()) => Ok(Some(range.end - range.start)),
        Err(PutError::Store(error)) => Err(error),
        Err(PutError::Corrupt(error)) => {
            debug!(%image, piece, %error, "the store refuses what was put together");
            Ok(None)
        }
    }
}

/// Where a piece that is partly here gets the rest from.
pub(super) struct Rest<'a> {
    pub(super) store: &'a dyn ChunkStore,
    pub(super) transport: &'a Transport,
    pub(super) uplink: &'a Uplink,
    pub(super) source: &'a Source,
}

impl Rest<'_> {
    /// Fetches what of a piece is not here in other images, and makes the piece durable. How many bytes were here; `None`
    /// if the whole piece is to be fetched: nothing is here, or it is something else.
    pub(super) async fn fetch(
        &self,
        plan: &Plan,
        artifact: ArtifactId,
        piece: u32,
    ) -> Result<Option<Brought>, PieceError> {
        let layout = plan.layout();
        if plan.groups(piece).is_empty() {
            return Ok(None);
        }
        let part = match plan.part(self.store, piece).await {
            Ok(part) => part,
            Err(error) => {
                debug!(%artifact, piece, %error, "a part of an old image cannot be read");
                plan.spoil(piece);
                return Ok(None);
            }
        };
        let missing = Groups::all(layout, piece).without(part.groups);
        let mut brought = Brought {
            reused: part.groups.bytes(layout, piece),
            ..Brought::default()
        };
        let fetched = match missing.is_empty() {
            true => Vec::new(),
            false => {
                let bytes = usize::try_from(missing.bytes(layout, piece)).unwrap_or(usize::MAX);
                self.transport.await_budget(self.source.peer(), bytes).await;
                let answer = match self.source {
                    Source::Peer(peer) => {
                        let asked = self.transport.fetch_groups(peer, artifact, layout, piece, missing);
                        asked.await.map_err(PieceError::from)
                    }
                    Source::Origin => {
                        let asked = self.uplink.groups(artifact, layout, piece, missing);
                        asked.await.map_err(PieceError::from)
                    }
                };
                // It may be that the other side does not know how: the next request is for the whole piece.
                let answer = answer.inspect_err(|_| plan.spoil(piece))?;
                brought.waited = answer.waited;
                decode_groups(&answer.bytes, artifact, layout, piece, missing).map_err(PutError::from)?
            }
        };
        let Some(encoded) = plan.encode(piece, part, &fetched) else {
            return Ok(None);
        };
        self.store.put(artifact, layout, piece, encoded).await?;
        Ok(Some(brought))
    }
}
