//! People who write, one write after another, and remember what was acknowledged.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use firmesh_protocol::api::DeviceView;
use serde_json::json;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::trio::Trio;
use crate::demo::{
    api::Api,
    layout::{MODEL, VENDOR},
    world::World,
};

/// Between two writes of one person; while nobody takes them, too: they are to find out soon.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);

/// An answer that takes longer is given up, and asked for anew.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A write that was acknowledged.
#[derive(Debug)]
struct Acknowledged {
    name: String,
    sent: Instant,
    answered: Instant,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Writers {
    tasks: JoinSet<()>,
    heard: mpsc::UnboundedReceiver<Acknowledged>,
    names: Vec<String>,
    stop: CancellationToken,
}

impl Writers {
    pub(super) fn begin(trio: &Trio, count: u32) -> Result<Self> {
        let (tell, heard) = mpsc::unbounded_channel();
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        for number in 0..count {
            let (api, tell, stopped) = (trio.api()?, tell.clone(), stop.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = write(number, &api, &tell) => {}
                }
            });
        }
        Ok(Self {
            tasks,
            heard,
            names: Vec::new(),
            stop,
        })
    }

    /// When the first write was acknowledged that was sent after `moment`.
    pub(super) async fn first_after(&mut self, moment: Instant) -> Result<Instant> {
        loop {
            let next = self.heard.recv().await.context("nobody writes any more")?;
            self.names.push(next.name);
            if next.sent >= moment {
                return Ok(next.answered);
            }
        }
    }

    /// Everything that was ever acknowledged.
    pub(super) async fn end(mut self) -> Result<Vec<String>> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended?;
        }
        while let Ok(next) = self.heard.try_recv() {
            self.names.push(next.name);
        }
        Ok(self.names)
    }
}

async fn write(writer: u32, api: &Api, tell: &mpsc::UnboundedSender<Acknowledged>) {
    for number in 0_u64.. {
        let name = format!("w{writer}-{number}");
        let device = json!({ "hardware_id": name, "vendor": VENDOR, "model": MODEL, "component": "bmc" });
        let sent = Instant::now();
        let asked = api.post::<serde_json::Value>("/api/v1/devices", &device);
        // A write whose answer was lost may have been made or not: nobody was told that it was.
        let pause = match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(Ok(_)) => {
                let answered = Instant::now();
                if tell.send(Acknowledged { name, sent, answered }).is_err() {
                    return;
                }
                PAUSE
            }
            Ok(Err(_)) | Err(_) => PAUSE_AFTER_FAILURE,
        };
        tokio::time::sleep(pause).await;
    }
}

/// The names of all devices that the coordinators know.
pub(super) async fn registered(world: &World) -> Result<BTreeSet<String>> {
    let devices: Vec<DeviceView> = world.api.list("/api/v1/devices").await?;
    Ok(devices.into_iter().map(|view| view.facts.device.to_string()).collect())
}
