//! A coordinator that starves its nodes: it never answers, answers a byte a second, or never ends. The node breaks off at
//! its bound, says so by name, keeps what it had, and goes on as soon as the coordinator behaves.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firmesh_tests::{
    rogue::{Asked, Manner, Rogue},
    setup::place,
    wait::{Seen, Turn, until},
};
use serde_json::json;

use crate::{refusals::Forger, victim::Victim};

/// How long this node's coordinator may be silent or slow.
const PATIENCE: Duration = Duration::from_secs(2);

/// Some times its patience, on a machine with other things to do.
const WITHIN: Duration = Duration::from_secs(60);

/// The longest answer that a node reads is one with news; what lies in sockets and buffers on its way is little beside it.
const ENDLESS_BYTES_MAX: usize = 64 << 20;

/// What is starved, how, and the name it has to be given.
const STARVED: &[(Asked, Manner, &str)] = &[
    (Asked::Metadata, Manner::Endless, "too_large"),
    (Asked::Campaign, Manner::Endless, "too_large"),
    (Asked::Image, Manner::Endless, "too_large"),
    (Asked::Sync, Manner::Endless, "too_large"),
    (Asked::Metadata, Manner::Slow, "slow_answer"),
    (Asked::Campaign, Manner::Slow, "slow_answer"),
    (Asked::Image, Manner::Slow, "slow_answer"),
    (Asked::Sync, Manner::Slow, "slow_answer"),
    (Asked::Metadata, Manner::Mute, "no_answer"),
    (Asked::Campaign, Manner::Mute, "no_answer"),
    (Asked::Image, Manner::Mute, "no_answer"),
    (Asked::Sync, Manner::Mute, "no_answer"),
];

#[tokio::test]
async fn endless_slow_and_missing_answers_are_broken_off_by_name_and_change_nothing() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    for &(asked, manner, code) in STARVED {
        let starved = starved(&rogue, asked, manner, code).await;
        starved.with_context(|| format!("{asked:?} {manner:?}"))?;
    }
    Ok(())
}

async fn starved(rogue: &Rogue, asked: Asked, manner: Manner, code: &str) -> Result<()> {
    let forger = Forger::honest()?;
    let victim = Victim::start_with(rogue, &forger, |config| {
        let impatient = format!("[coordinator]\npatience = \"{}s\"\n", PATIENCE.as_secs());
        config.replace("[coordinator]\n", &impatient)
    })
    .await?;
    forger.offer_with(rogue, 1, |wares| {
        wares.spoilt = Some((asked, manner));
        Ok(())
    })?;
    let of = match asked {
        Asked::Sync => "/node/v1/sync",
        Asked::Metadata => "/node/v1/metadata/",
        Asked::Campaign => "/node/v1/targets/",
        Asked::Image => "/node/v1/artifacts/",
    };
    until(&format!("{code} for {of}"), WITHIN, async || {
        let refusals = victim.refusals().await?;
        let named = refusals.iter().any(|refusal| {
            let detail = refusal["detail"].as_str().unwrap_or_default();
            refusal["code"] == code && detail.contains(of)
        });
        Ok(Seen::when(named, || format!("{refusals:?}")))
    })
    .await?;
    let taken = rogue.wares().endless_bytes;
    ensure!(
        taken < ENDLESS_BYTES_MAX,
        "{taken} bytes of an endless answer were taken"
    );

    let status = victim.node.status().await?;
    if asked == Asked::Image {
        ensure!(status["holdings"][0]["pieces"] == 0, "a piece is here: {status}");
    } else {
        victim.is_untouched(rogue).await?;
    }
    if matches!(asked, Asked::Metadata | Asked::Sync) {
        victim.trusts_what_it_did()?;
    }
    ensure!(
        status["attempts"]
            .as_array()
            .is_none_or(|attempts| attempts.iter().all(|attempt| attempt["state"] == json!("downloading"))),
        "an attempt was begun: {status}"
    );

    // The same, offered again and soundly, goes through.
    forger.offer_with(rogue, 2, |wares| {
        wares.spoilt = None;
        Ok(())
    })?;
    victim
        .writes_its_device()
        .await
        .context("when the coordinator behaves again")
}
