//! Bundles: a campaign and its images by hand, for a site that no network reaches.
//!
//! The head's metadata answers an ordinary refresh, the campaign is put together and kept as if it had been fetched, and
//! pieces go the way of every piece: nothing is believed or stored here that would not be over the network.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use firmesh_executors::JournalError;
use firmesh_node_core::swarm;
use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, Sha256},
    pieces::PieceSet,
    site_bundle::{Head, WantedArtifact, Wants},
    trust::Input,
};
use tokio::sync::oneshot;
use tracing::info;

use super::{Chain, Event, Refreshed, Runtime, room::STORE_FULL};
use crate::{
    campaigns,
    status::{BundleRequest, Refusal},
    store::PutError,
};

type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// A head whose metadata and campaign were looked at.
pub(super) struct Shown {
    refreshed: Refreshed,
    campaign: CampaignId,
    answer: Answer<Wants>,
}

/// A piece that was verified and made durable, or not.
pub(super) struct Carried {
    artifact: ArtifactId,
    piece: u32,
    result: Result<(), PutError>,
    answer: Answer<()>,
}

impl Runtime {
    pub(super) fn on_bundle(&mut self, request: BundleRequest) {
        match request {
            BundleRequest::Head { head, answer } => self.on_head(*head, answer),
            BundleRequest::Wants { campaign, answer } => {
                answer.send(self.wants_of(&campaign)).ok(); // whoever asked may have gone
            }
            BundleRequest::Piece {
                artifact,
                piece,
                encoded,
                answer,
            } => self.on_carried_piece(artifact, piece, encoded, answer),
        }
    }

    fn on_head(&mut self, head: Head, answer: Answer<Wants>) {
        if head.fleet_ca_sha256 != Sha256::of(self.settings.fleet_ca_pem.as_bytes()) {
            let detail = "the bundle is of another fleet: it names another fleet CA than coordinator.ca_file holds";
            self.refuse("bundle_other_fleet", detail.to_owned());
            answer.send(Err(refusal("bundle_other_fleet", detail))).ok(); // whoever brought it may have gone
            return;
        }
        let (trust, folder) = (Arc::clone(&self.trust), self.settings.state_dir.join("campaigns"));
        self.spawn(async move {
            let mut trust = trust.lock().await;
            let fetch = |name: String, _| {
                let file = head.metadata.get(&name);
                let input = file.map_or(Input::NotFound, |text| Input::Fetched(text.clone().into_bytes()));
                std::future::ready(input)
            };
            let fleet = trust.refresh(fetch).await;
            let mut found = BTreeMap::new();
            if let Ok(fleet) = &fleet {
                let (id, manifest, plan) = (&head.campaign, head.manifest.as_bytes(), head.plan.as_bytes());
                found.insert(id.clone(), campaigns::keep(fleet, &folder, id, manifest, plan));
            }
            Event::BundleShown(Box::new(Shown {
                refreshed: Refreshed {
                    fleet,
                    broken_off: None,
                    campaigns: found,
                    offered_version: 0,
                    known_time: trust.known_time(),
                },
                campaign: head.campaign,
                answer,
            }))
        });
    }

    pub(super) fn on_bundle_shown(&mut self, shown: Shown) -> Result<(), JournalError> {
        let Shown {
            refreshed,
            campaign,
            answer,
        } = shown;
        let refused = match (&refreshed.fleet, refreshed.campaigns.get(&campaign)) {
            (Err(error), _) => Some(refusal(error.code(), Chain(error))),
            (_, Some(Err(error))) => Some(refusal(error.code(), Chain(error))),
            _ => None,
        };
        self.on_refreshed(refreshed)?;
        let verdict = match refused {
            Some(refusal) => Err(refusal),
            None => {
                info!(%campaign, "a bundle brought a campaign");
                self.wants_of(&campaign)
            }
        };
        answer.send(verdict).ok(); // whoever brought it may have gone
        Ok(())
    }

    fn wants_of(&self, id: &CampaignId) -> Result<Wants, Refusal> {
        let campaign = self.fleet.campaigns.get(id);
        let campaign =
            campaign.ok_or_else(|| refusal("no_such_campaign", format!("campaign {id} is not known here")))?;
        let wanted = campaign
            .artifacts_for(&self.settings.node)
            .into_iter()
            .filter_map(|artifact| {
                let tracked = self.tracked.get(&artifact)?;
                let held = self.swarm.have(&artifact).cloned();
                let about = format!("artifact {artifact}: ");
                let mut refusals = self.refusals.iter().rev();
                let full = refusals.find(|known| known.code == STORE_FULL && known.detail.starts_with(&about));
                Some(WantedArtifact {
                    artifact,
                    ready: tracked.has_room && held.is_some(),
                    held: held.unwrap_or_else(|| PieceSet::empty(tracked.layout.pieces())),
                    refusal: full.map(|known| format!("{}: {}", known.code, known.detail)),
                })
            });
        let artifacts = wanted.collect();
        Ok(Wants { artifacts })
    }

    fn on_carried_piece(&mut self, artifact: ArtifactId, piece: u32, encoded: Bytes, answer: Answer<()>) {
        let tracked = self.tracked.get(&artifact).filter(|tracked| tracked.has_room);
        let layout = tracked
            .map(|tracked| tracked.layout)
            .filter(|layout| piece < layout.pieces());
        let Some(layout) = layout else {
            let detail = format!("piece {piece} of artifact {artifact} is not wanted here now");
            answer.send(Err(refusal("not_wanted", detail))).ok(); // whoever brought it may have gone
            return;
        };
        let store = Arc::clone(&self.store);
        self.spawn(async move {
            let result = store.put(artifact, layout, piece, encoded).await;
            Event::Carried(Carried {
                artifact,
                piece,
                result,
                answer,
            })
        });
    }

    pub(super) fn on_carried(&mut self, carried: Carried) -> Result<(), JournalError> {
        let Carried {
            artifact,
            piece,
            result,
            answer,
        } = carried;
        let verdict = match result {
            Ok(()) => {
                let held = self.swarm.have(&artifact);
                if held.is_some_and(|held| !held.contains(piece))
                    && let Some(tracked) = self.tracked.get(&artifact)
                {
                    let bytes = tracked.layout.bytes(piece);
                    self.room.bundle_bytes += bytes.end - bytes.start;
                }
                self.tell_swarm(swarm::Input::Stored { artifact, piece })?;
                Ok(())
            }
            Err(PutError::Corrupt(error)) => {
                self.traffic.verification_failures += 1;
                let detail = format!("piece {piece} was altered or damaged on its way: {}", Chain(&error));
                self.refuse("bundle_altered", detail.clone());
                Err(refusal("bundle_altered", detail))
            }
            Err(PutError::Store(error)) => {
                self.local_error(&error);
                let is_full = error.is_full();
                if is_full {
                    self.on_store_full(artifact)?;
                }
                Err(refusal(if is_full { STORE_FULL } else { "local_store" }, Chain(&error)))
            }
        };
        answer.send(verdict).ok(); // whoever brought it may have gone
        Ok(())
    }
}

fn refusal(code: &str, detail: impl ToString) -> Refusal {
    Refusal {
        code: code.to_owned(),
        detail: detail.to_string(),
    }
}
