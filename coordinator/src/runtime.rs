//! The one task that owns the [`World`]: it takes commands, drives the engine, makes what follows durable, and only then
//! answers. Nothing else calls the engine.
//!
//! How what follows becomes durable, and what happens when it does not, is in [`crate::change`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use firmesh_coordinator_core::{Closing, Input, InputError, Loaded, Output, PermitOrder, Record, WebhookAnswer};
use firmesh_protocol::{
    api::{
        ArchiveView, AttemptView, EnrolRequest, EnrolResponse, EnrolmentTicket, EventKind, NewNode, Publication,
        Published as Versions, RenewRequest, RevokeRequest, SyncResponse,
    },
    brake::Brake,
    identity::NodeIdentity,
    ids::{CampaignId, DeviceId, NodeId, Sha256},
    manifest::{Artifact, CampaignManifest},
    report::Permit,
    rollback::RollbackRequest,
    time::{Timestamp, WallTime},
    trust::Envelope,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    approval::ApprovalError,
    authority::Authority,
    brakes::BrakeActionError,
    change::{Change, LOOKS_MAX, UnderWay},
    collect::{CollectError, forget_unnamed},
    config::Settings,
    enrolment::EnrolError,
    events::Events,
    identities::Busy,
    notify::Watch,
    possession::Judged,
    publish::{PublicationError, Published, check_campaign},
    rollback::RollbackError,
    store::{Store, StoreError, StoredPermit, Write},
    sync::{Heartbeat, SyncError},
    telemetry::{Metrics, chain},
    traces::Traces,
    uploads::Uploads,
    vetting::Vetted,
    world::{RestoreError, World, by_sha256, images, on_our_clock},
};

/// The process's two clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts now.
    #[must_use]
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Time since the start.
    #[must_use]
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::after_start(self.start.elapsed())
    }

    /// The time of day.
    #[must_use]
    pub(crate) fn wall(&self) -> WallTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallTime::from_unix_seconds(since.as_secs().cast_signed())
    }

    /// The same moment for timers.
    pub(crate) fn instant(&self, at: Timestamp) -> tokio::time::Instant {
        (self.start + at.since_start()).into()
    }
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActionError {
    /// The engine refused it.
    #[error(transparent)]
    Refused(#[from] InputError),
    /// It could not be made durable.
    #[error("the change could not be stored, and was not made")]
    Store(#[from] StoreError),
    /// Its devices are in the archive only.
    #[error(
        "campaign {0} is archived: what became of its devices can be read, and nothing can be done with them any more"
    )]
    Archived(CampaignId),
    /// It goes on.
    #[error("campaign {0} has devices that are not done with: it stays where it is")]
    AtWork(CampaignId),
    /// The coordinator is going down.
    #[error("the coordinator is stopping")]
    Stopping,
}

/// Why a publication was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishActionError {
    /// It was refused.
    #[error(transparent)]
    Refused(#[from] PublicationError),
    /// Storing it, or telling the engine, failed.
    #[error(transparent)]
    Action(#[from] ActionError),
}

pub(crate) type Reply<T, E> = oneshot::Sender<Result<T, E>>;

pub(crate) enum Command {
    Act(Input, Reply<(), ActionError>),
    Publish(Publication, Vetted, Reply<Versions, PublishActionError>),
    NewNode(NewNode, Reply<EnrolmentTicket, EnrolError>),
    Enrol(EnrolRequest, Reply<EnrolResponse, EnrolError>),
    Renew(
        Box<(NodeIdentity, Vec<u8>, RenewRequest)>,
        Reply<EnrolResponse, EnrolError>,
    ),
    Revoke(NodeId, RevokeRequest, Reply<(), EnrolError>),
    Brake(Box<Envelope>, Reply<Brake, BrakeActionError>),
    RollBack(CampaignId, Box<RollbackRequest>, Reply<(), RollbackError>),
    Approve(CampaignId, Box<Envelope>, Reply<(), ApprovalError>),
    Close(Closing, Reply<(), ActionError>),
    /// What a webhook has said between two waves: nobody's order.
    Answer(WebhookAnswer, Reply<(), ActionError>),
    /// What nodes have told of a device goes out of memory; it has gone from the database.
    Remove(DeviceId, Reply<bool, ActionError>),
    /// Nobody knows any more whose a device was, unless it has something to do.
    Erase(DeviceId, Reply<Result<WallTime, Busy>, ActionError>),
    Settle(NodeId, Vec<Judged>, Reply<(), ActionError>),
    /// Rows of images that nothing names go, while nothing is being published. Answers which.
    Archive(Box<ArchiveView>, Reply<(), ActionError>),
    Collect(Vec<Artifact>, Uploads, Reply<Vec<Artifact>, CollectError>),
    Sync(Box<Heartbeat>, Reply<SyncResponse, SyncError>),
}

/// How long before metadata that could not be signed or stored is tried again: a full disk must not be asked all the
/// time, nor the renewal be missed.
pub(crate) const RENEW_AGAIN: Duration = Duration::from_secs(30);

/// Commands waiting for the task. When it is full, callers wait: requests are bounded by their connections.
const COMMANDS_MAX: usize = 256;

/// Heartbeats that are made durable together at most, and what they may bring together: everybody else waits meanwhile.
const HEARTBEATS_MAX: usize = 32;
const HEARD_MAX: usize = 500;

/// A look at the world.
pub(crate) type Look = Box<dyn FnOnce(&World) + Send>;

/// A handle on the task.
#[derive(Debug, Clone)]
pub(crate) struct Coordinator {
    commands: mpsc::Sender<Command>,
    /// Looks are quick, and do not wait behind what has to become durable.
    looks: mpsc::Sender<Look>,
}

impl Coordinator {
    pub(crate) async fn ask<T, E: From<ActionError>>(
        &self,
        command: impl FnOnce(Reply<T, E>) -> Command,
    ) -> Result<T, E> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(command(reply)).await;
        sent.map_err(|_| ActionError::Stopping)?;
        answer.await.map_err(|_| ActionError::Stopping)?
    }

    /// Looks at the world. `look` must be quick: everything waits for it.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&World) -> T + Send + 'static,
    ) -> Result<T, ActionError> {
        let (reply, answer) = oneshot::channel();
        let look = Box::new(move |world: &World| {
            // The asker may have gone away.
            let _ = reply.send(look(world));
        });
        self.looks.send(look).await.map_err(|_| ActionError::Stopping)?;
        answer.await.map_err(|_| ActionError::Stopping)
    }

    /// Tells the engine what a webhook said.
    pub(crate) async fn answer(&self, answer: WebhookAnswer) -> Result<(), ActionError> {
        self.ask(|reply| Command::Answer(answer, reply)).await
    }

    /// Gives the engine an order.
    pub(crate) async fn act(&self, input: Input) -> Result<(), ActionError> {
        self.ask(|reply| Command::Act(input, reply)).await
    }
}

pub(crate) struct Runtime {
    pub(crate) world: World,
    pub(crate) store: Store,
    pub(crate) authority: Arc<Authority>,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: Arc<Metrics>,
    /// None at first: whoever made it says which.
    pub(crate) traces: Arc<Traces>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) clock: Clock,
    pub(crate) node_url: String,
    pub(crate) watch: Watch,
    commands: mpsc::Receiver<Command>,
    pub(crate) looks: mpsc::Receiver<Look>,
    /// Whether the world may be looked at while a change becomes durable.
    pub(crate) is_shown: bool,
    pub(crate) under_way: Option<UnderWay>,
    /// Brakes that nodes have passed on, not looked at yet; at most [`BRAKES_MAX`].
    pub(crate) passed_on: VecDeque<(NodeId, Envelope)>,
    pub(crate) renew_at: Timestamp,
    /// The world is not what the database has, and cannot be read from it: nothing is decided any more.
    pub(crate) fatal: Option<RestoreError>,
}

impl Runtime {
    pub(crate) async fn new(
        store: Store,
        authority: Arc<Authority>,
        events: Arc<Events>,
        metrics: Arc<Metrics>,
        settings: Arc<Settings>,
        clock: Clock,
        node_url: String,
    ) -> Result<(Coordinator, Self), RestoreError> {
        let world = World::restore(&store, settings.permit_ttl, clock.now(), clock.wall()).await?;
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (look, looks) = mpsc::channel(COMMANDS_MAX);
        let renew_at = clock.now();
        let runtime = Self {
            world,
            store,
            authority,
            events,
            metrics,
            traces: Arc::default(),
            settings,
            clock,
            node_url,
            watch: Watch::new(clock.now(), clock.wall()),
            commands,
            looks,
            is_shown: true,
            under_way: None,
            passed_on: VecDeque::new(),
            renew_at,
            fatal: None,
        };
        let coordinator = Coordinator {
            commands: sender,
            looks: look,
        };
        Ok((coordinator, runtime))
    }

    /// Runs until cancelled, or until the database is beyond use. What was acknowledged is durable at any time.
    pub(crate) async fn run(mut self, cancel: CancellationToken) -> Result<(), RestoreError> {
        if let Err(failure) = self.begin_epoch().await {
            error!(error = %chain(&failure), "permits of the last epoch could not be signed again: they lapse, and others follow");
        }
        self.obey_brakes().await;
        // Metadata that expired while nobody was here, and what the engine wanted when it was loaded.
        self.renew().await;
        self.tick().await;
        let mut looked = 0;
        while self.fatal.is_none() {
            self.pull_passed_on().await;
            let due = self.renew_at.min(self.watch.look_at);
            let wake = self.world.engine.deadline().map_or(due, |at| at.min(due));
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(look) = self.looks.recv(), if looked < LOOKS_MAX => {
                    look(&self.world);
                    looked += 1;
                    continue;
                }
                stored = UnderWay::stored(&mut self.under_way), if self.under_way.is_some() => {
                    // Those who wait for it have been told.
                    let _ = self.settled(stored).await;
                }
                () = tokio::time::sleep_until(self.clock.instant(wake)) => {
                    self.tick().await;
                    if self.clock.now() >= self.renew_at {
                        self.renew().await;
                    }
                    if self.clock.now() >= self.watch.look_at {
                        self.look_for_silence().await;
                    }
                    // While the engine has more to do at once, others take turns with it.
                    if let Ok(command) = self.commands.try_recv() {
                        self.obey(command).await;
                    }
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => break,
                },
                // Nobody else wants anything.
                () = std::future::ready(()), if looked == LOOKS_MAX => {}
            }
            looked = 0;
        }
        if self.fatal.is_none() {
            let _ = self.settle().await;
        }
        self.fatal.map_or(Ok(()), Err)
    }

    /// A brake may be durable before what it stops has been stopped.
    async fn obey_brakes(&mut self) {
        if let Err(failure) = self.stop_braked().await {
            error!(error = %chain(&failure), "a campaign that a brake stops could not be stopped, it is tried again");
        }
    }

    /// What follows becomes durable while something else is decided.
    async fn tick(&mut self) {
        let mut change = Change::default();
        let ticked = match self.decide(Input::Tick, &mut change).await {
            Ok(()) if change.is_empty() => Ok(()),
            Ok(()) => self.begin(change, Vec::new()).await.map_err(ActionError::from),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = ticked {
            error!(error = %chain(&failure), "a decision could not be stored, it is taken again later");
        }
    }

    // Askers may have gone away: then nobody wants the reply.
    async fn obey(&mut self, command: Command) {
        match command {
            Command::Act(input, reply) => drop(reply.send(self.act(input).await)),
            Command::Publish(publication, vetted, reply) => {
                drop(reply.send(self.publish(&publication, &vetted).await));
            }
            Command::NewNode(node, reply) => drop(reply.send(self.new_node(node).await)),
            Command::Enrol(request, reply) => drop(reply.send(self.enrol(request).await)),
            Command::Renew(asked, reply) => {
                let (identity, certificate, request) = *asked;
                drop(reply.send(self.renew_certificate(&identity, &certificate, &request).await));
            }
            Command::Revoke(node, request, reply) => drop(reply.send(self.revoke(&node, request).await)),
            Command::Brake(envelope, reply) => drop(reply.send(self.brake(&envelope).await)),
            Command::RollBack(id, request, reply) => drop(reply.send(self.roll_back(id, *request).await)),
            Command::Approve(id, envelope, reply) => drop(reply.send(self.approve(id, &envelope).await)),
            Command::Close(closing, reply) => drop(reply.send(self.close(closing).await)),
            Command::Answer(answer, reply) => {
                drop(reply.send(self.apply(Input::WebhookAnswered(answer), Vec::new()).await));
            }
            Command::Remove(device, reply) => drop(reply.send(self.remove(device).await)),
            Command::Erase(device, reply) => drop(reply.send(self.erase(device).await)),
            Command::Settle(node, judged, reply) => drop(reply.send(self.settle_proofs(&node, judged).await)),
            Command::Archive(view, reply) => drop(reply.send(self.archive(view).await)),
            Command::Collect(images, uploads, reply) => {
                drop(reply.send(forget_unnamed(&self.store, &uploads, images).await));
            }
            Command::Sync(heartbeat, reply) => self.hear_many(*heartbeat, reply).await,
        }
    }

    /// Hears a heartbeat, and those that wait right behind it.
    async fn hear_many(&mut self, first: Heartbeat, reply: Reply<SyncResponse, SyncError>) {
        let mut brought = first.weight();
        let (mut heartbeats, mut other) = (vec![(first, reply)], None);
        while other.is_none() && heartbeats.len() < HEARTBEATS_MAX && brought < HEARD_MAX {
            match self.commands.try_recv() {
                Ok(Command::Sync(heartbeat, reply)) => {
                    brought += heartbeat.weight();
                    heartbeats.push((*heartbeat, reply));
                }
                Ok(command) => other = Some(command),
                Err(_) => break,
            }
        }
        self.hear(heartbeats).await;
        // Whoever asked learns that nobody leads here any more.
        if let Some(command) = other.filter(|_| self.fatal.is_none()) {
            Box::pin(self.obey(command)).await;
        }
    }

    async fn act(&mut self, input: Input) -> Result<(), ActionError> {
        info!(order = ?input, "an operator's order");
        self.apply(input, Vec::new()).await
    }

    /// From now on only the archive has the devices of a campaign, unless one of them is not done with.
    async fn archive(&mut self, view: Box<ArchiveView>) -> Result<(), ActionError> {
        let id = view.campaign.clone();
        let attempts = self.world.engine.attempts(&id).unwrap_or_default();
        let waits = |attempt: &AttemptView| !attempt.state.is_terminal();
        let state = self.world.engine.state(&id);
        if state.is_some_and(|state| !state.is_terminal()) || attempts.iter().any(waits) {
            return Err(ActionError::AtWork(id));
        }
        self.commit(vec![Write::Archived(view)]).await?;
        self.world.archived.insert(id);
        Ok(())
    }

    /// Nobody gives orders about devices that only the archive has.
    pub(crate) fn refuse_archived(&self, campaign: &CampaignId) -> Result<(), ActionError> {
        match self.world.archived.contains(campaign) {
            true => Err(ActionError::Archived(campaign.clone())),
            false => Ok(()),
        }
    }

    async fn close(&mut self, closing: Closing) -> Result<(), ActionError> {
        self.refuse_archived(&closing.campaign)?;
        warn!(campaign = %closing.campaign, device = ?closing.device, reason = closing.reason, "closed by force");
        let write = Write::Closing {
            campaign: closing.campaign.clone(),
            device: closing.device.clone(),
            reason: closing.reason.clone(),
        };
        self.apply(Input::Close(closing), vec![write]).await
    }

    /// Gives the engine an input, makes `writes` and all that follows durable together, and tells who watches.
    pub(crate) async fn apply(&mut self, input: Input, writes: Vec<Write>) -> Result<(), ActionError> {
        let mut change = Change {
            writes,
            ..Change::default()
        };
        self.decide(input, &mut change).await?;
        self.enact(change).await
    }

    /// Gives the engine an input, and adds what follows to the change. After an error of the store the world is what the
    /// database has, and the change is to be dropped.
    pub(crate) async fn decide(&mut self, input: Input, change: &mut Change) -> Result<(), ActionError> {
        self.world.engine.handle(self.clock.now(), input)?;
        let mut told = BTreeSet::new();
        while let Some(output) = self.world.engine.poll() {
            match output {
                Output::Persist(Record::Campaign(record)) => {
                    info!(campaign = %record.id, state = ?record.state, reason = record.reason, "campaign");
                    self.tell_campaign(&record.id, &mut told, change);
                    change.writes.push(Write::Campaign(record));
                }
                Output::Persist(Record::Attempt(id, record)) => {
                    let attempt = self.world.engine.attempt(&id, &record.device);
                    change.events.extend(attempt.map(EventKind::Attempt));
                    change.writes.push(Write::Attempt(id, record));
                }
                Output::Persist(Record::Possession(id, record)) => {
                    if !record.proven {
                        self.tell_campaign(&id, &mut told, change);
                    }
                    change.writes.push(Write::Possession(id, record));
                }
                Output::IssuePermit(order) => {
                    let evidence = match self.evidence_for(&order, &mut change.writes).await {
                        Ok(evidence) => evidence,
                        // What the engine has decided is not stored, and will not be.
                        Err(failure) => {
                            self.give_up().await;
                            return Err(failure);
                        }
                    };
                    change.permits.extend(self.sign(order, evidence));
                }
            }
        }
        Ok(())
    }

    /// A campaign looks the same after all that one input has changed: it is shown once.
    fn tell_campaign(&self, id: &CampaignId, told: &mut BTreeSet<CampaignId>, change: &mut Change) {
        if told.insert(id.clone()) {
            let view = self.world.campaign_event(id);
            change.events.extend(view.map(EventKind::Campaign));
        }
    }

    fn sign(&self, order: PermitOrder, evidence: Vec<Sha256>) -> Option<StoredPermit> {
        let PermitOrder {
            campaign,
            kind,
            wave,
            attempt,
            sequence,
            devices,
        } = order;
        let manifest = self.world.published.manifests.get(&campaign)?;
        let nodes = devices
            .iter()
            .filter_map(|id| Some(self.world.engine.node_of(&campaign, id)?.clone()));
        let nodes: BTreeSet<_> = nodes.collect();
        let issued = self.clock.wall();
        let expires = issued + self.settings.permit_ttl;
        info!(%campaign, ?kind, wave, sequence, devices = devices.len(), "permit");
        let permit = Permit {
            manifest_sha256: Sha256::of(manifest),
            campaign: campaign.clone(),
            kind,
            wave,
            attempt,
            sequence,
            epoch: self.world.epoch,
            issued,
            expires,
            devices,
            evidence,
        };
        let envelope = self.authority.sign_permit(&permit);
        Some(StoredPermit {
            campaign,
            kind,
            sequence,
            nodes: nodes.into_iter().collect(),
            expires,
            envelope,
        })
    }

    /// Signs snapshot and timestamp anew before they expire.
    async fn renew(&mut self) {
        self.obey_brakes().await;
        let half = (self.settings.metadata_validity.shorter() / 2).max(Duration::from_millis(500));
        self.renew_at = self.clock.now() + half.min(RENEW_AGAIN);
        let nothing = Vetted::nothing(self.settings.provenance_policy.as_ref());
        match self.publish(&Publication::default(), &nothing).await {
            Ok(_) => {}
            Err(PublishActionError::Refused(PublicationError::Nothing)) => self.renew_at = self.clock.now() + half,
            Err(failure) => {
                error!(error = %chain(&failure), "metadata could not be renewed: sign what has expired, and publish it");
            }
        }
    }

    async fn publish(&mut self, publication: &Publication, vetted: &Vetted) -> Result<Versions, PublishActionError> {
        let wall = self.clock.wall();
        let artifacts = self.store.artifacts().await.map_err(ActionError::from)?;
        let artifacts: BTreeMap<_, _> = artifacts.into_iter().map(|artifact| (artifact.id, artifact)).collect();
        let (before, validity) = (&self.world.published, self.settings.metadata_validity);
        let next = before.with(publication, self.authority.online_key(), &artifacts, wall, validity)?;
        vetted.check(before, &next)?;
        let loaded = self
            .check_new_campaigns(&next, &by_sha256(artifacts.into_values()))
            .await?;
        // First, so that nothing starts on an approval that is gone, whatever happens in between.
        for id in self.withdrawn(&next) {
            warn!(campaign = %id, "those who signed for it have withdrawn it, or a release of it");
            self.apply(Input::Withdraw(id), Vec::new()).await?;
        }

        let before = std::mem::replace(&mut self.world.published, next);
        let mut writes = changes(&before, &self.world.published);
        for Loaded { manifest, .. } in &loaded {
            self.world.permits.drop_campaign(&manifest.id);
            writes.push(Write::Restart(manifest.id.clone()));
        }
        // Whoever saw a version that then did not come about would take the next one of its number for a forgery.
        self.is_shown = false;
        let stored = self.apply(Input::Load(loaded), writes).await;
        self.is_shown = true;
        if let Err(failure) = stored {
            // After a failed write the world has been read back from the database already, but for what is verified.
            if matches!(failure, ActionError::Refused(_)) {
                self.world.published = before;
            } else if self.world.published.trusted == before.trusted {
                self.world.published.fleet = before.fleet;
            }
            return Err(failure.into());
        }
        self.renew_at = self.clock.now() + (validity.shorter() / 2).max(Duration::from_millis(500));
        let versions = self.world.published.versions();
        info!(?versions, "published");
        Ok(Versions { versions })
    }

    async fn check_new_campaigns(
        &self,
        next: &Published,
        artifacts: &BTreeMap<Sha256, Artifact>,
    ) -> Result<Vec<Loaded>, PublishActionError> {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let Some(fleet) = &next.fleet else {
            return Ok(Vec::new());
        };
        let mut loaded = Vec::new();
        for (id, bytes) in next.new_campaigns(&self.world.published) {
            let started = |view: &firmesh_protocol::api::CampaignView| {
                view.state != firmesh_protocol::api::CampaignState::Scheduled
            };
            if self.world.archived.contains(id) || self.world.engine.campaign(id).as_ref().is_some_and(started) {
                return Err(PublicationError::Started(id.clone()).into());
            }
            // The digest is only a key here; the bytes behind it are checked against the verified manifest.
            let digest = CampaignManifest::from_bytes(bytes)
                .ok()
                .map(|manifest| manifest.plan_sha256);
            let plan = match digest {
                Some(digest) => self.store.plan(digest).await.map_err(ActionError::from)?,
                None => None,
            };
            let (manifest, plan) = check_campaign(fleet, id, bytes, plan.as_deref(), self.authority.permit_key())?;
            if let Some(brake) = self.world.brakes.on(&manifest, Sha256::of(bytes)) {
                return Err(PublicationError::Braked(brake.clone()).into());
            }
            let expires_at = on_our_clock(manifest.expires, now, wall);
            loaded.push(Loaded {
                images: images(&manifest, artifacts),
                manifest,
                plan,
                expires_at,
                record: None,
                attempts: Vec::new(),
                possession: Vec::new(),
            });
        }
        Ok(loaded)
    }

    /// Campaigns not ended that approvers no longer sign for, or that need a release nobody signs for any more: nodes
    /// drop these as well.
    fn withdrawn(&self, next: &Published) -> Vec<CampaignId> {
        let Some(fleet) = &next.fleet else {
            return Vec::new();
        };
        let is_carried = |id: &CampaignId| {
            let manifest = next.manifests.get(id).map(|bytes| CampaignManifest::from_bytes(bytes));
            manifest.and_then(Result::ok).is_some_and(|manifest| {
                let mut pinned = manifest.pinned();
                pinned.all(|pinned| fleet.pinned_release(pinned).is_ok())
            })
        };
        let states = self.world.engine.states();
        states
            .filter(|(id, state)| !state.is_terminal() && !is_carried(id))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Whether a device looked after by a node that is still heard of is claimed by another.
    pub(crate) fn is_taken(&self, device: &DeviceId, by: &NodeId) -> bool {
        let Some(known) = self.world.devices.get(device).filter(|known| known.node != by) else {
            return false;
        };
        let owner = self.world.nodes.get(known.node).and_then(|node| node.stored.last_seen);
        owner.is_some_and(|seen| seen + self.settings.silent_after >= self.clock.wall())
    }
}

/// What changes in the database from one publication to the next.
fn changes(before: &Published, after: &Published) -> Vec<Write> {
    let mut writes = Vec::new();
    for (name, bytes) in after
        .files
        .iter()
        .filter(|(name, bytes)| before.files.get(*name) != Some(*bytes))
    {
        writes.push(Write::Metadata(name.clone(), bytes.to_vec()));
    }
    writes.extend(
        before
            .files
            .keys()
            .filter(|name| !after.files.contains_key(*name))
            .cloned()
            .map(Write::DropMetadata),
    );
    for (name, bytes) in after
        .trusted
        .iter()
        .filter(|(name, bytes)| before.trusted.get(*name) != Some(*bytes))
    {
        writes.push(Write::Trusted(name.clone(), bytes.clone()));
    }
    for (id, bytes) in after.new_campaigns(before) {
        writes.push(Write::Manifest(id.clone(), bytes.to_vec()));
    }
    writes
}
