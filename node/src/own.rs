//! The node as the device that it updates itself as: what it says of itself, and how it is asked to restart.

use std::{sync::Arc, time::Duration};

use firmesh_executors::node_self::{Launched, Own};
use firmesh_node_core::own::{Heard, works};
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::warn;

/// The node's loop goes round twice a second; one that has not for so long hangs.
const LOOP_WITHIN: Duration = Duration::from_secs(30);

/// A wish that the node restarts, as soon as its other attempts let it.
#[derive(Debug)]
pub(crate) struct RestartRequest {
    /// By when it is refused, or granted if it must.
    pub(crate) by: Instant,
    /// Whether the node restarts then, whoever is at work.
    pub(crate) must: bool,
    /// Hears why not; gone if nobody wants it any more.
    pub(crate) refused: oneshot::Sender<String>,
}

/// What a node says of itself to its own executor.
#[derive(Debug)]
pub(crate) struct OwnNode {
    start_id: String,
    launched: Option<Launched>,
    heard: watch::Receiver<(Heard, Instant)>,
    restarts: mpsc::Sender<RestartRequest>,
}

/// The runtime's ends.
#[derive(Debug)]
pub(crate) struct OwnEnds {
    pub(crate) heard: watch::Sender<(Heard, Instant)>,
    pub(crate) restarts: mpsc::Receiver<RestartRequest>,
}

impl OwnNode {
    /// This process.
    pub(crate) fn new() -> (Arc<Self>, OwnEnds) {
        let (heard, heard_here) = watch::channel((Heard::default(), Instant::now()));
        let (asking, restarts) = mpsc::channel(1);
        let own = Self {
            start_id: start_id(),
            launched: launched(),
            heard: heard_here,
            restarts: asking,
        };
        (Arc::new(own), OwnEnds { heard, restarts })
    }
}

/// What the launcher said when it started this process; nothing if none did.
pub(crate) fn launched() -> Option<Launched> {
    let text = std::env::var(Launched::VARIABLE).ok()?;
    match Launched::parse(&text) {
        Ok(launched) => Some(launched),
        Err(error) => {
            warn!(%error, variable = Launched::VARIABLE, "what the launcher says is not understood: the node cannot update itself");
            None
        }
    }
}

fn start_id() -> String {
    match getrandom::u64() {
        Ok(random) => format!("{random:016x}"),
        // Differs all the same: no two processes of one machine have their number and their moment in common.
        Err(_no_randomness) => {
            let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            format!("{}-{}", std::process::id(), since_1970.as_nanos())
        }
    }
}

impl Own for OwnNode {
    fn version(&self) -> &str {
        crate::VERSION
    }

    fn start_id(&self) -> &str {
        &self.start_id
    }

    fn launched(&self) -> Option<&Launched> {
        self.launched.as_ref()
    }

    fn works(&self) -> Result<(), String> {
        let (heard, at) = *self.heard.borrow();
        if at.elapsed() > LOOP_WITHIN {
            return Err(format!(
                "its own loop has not gone round for {} s",
                at.elapsed().as_secs()
            ));
        }
        works(heard).map_err(str::to_owned)
    }

    fn updates_itself(&self) -> bool {
        self.heard.borrow().0.updates_itself
    }

    fn restart(&self, within: Duration, must: bool) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let (refused, answer) = oneshot::channel();
            let by = Instant::now() + within;
            let request = RestartRequest { by, must, refused };
            if self.restarts.send(request).await.is_err() {
                return Err("the node is going down".to_owned());
            }
            match answer.await {
                Ok(why) => Err(why),
                // Granted: this process is about to end, and what is said here is heard by nobody.
                Err(_gone) => std::future::pending().await,
            }
        }
        .boxed()
    }
}
