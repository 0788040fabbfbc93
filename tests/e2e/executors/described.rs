//! Devices behind described tools: flashrom with its emulated chip, and a stranger's tool that is killed everywhere.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, report::AttemptState};
use firmesh_tests::{
    attempts::killed_everywhere,
    packages::ensure_command,
    setup::{NEW, OLD},
    wait::{Seen, at_the_moment},
};

use super::{DEVICE, ENDS_WITHIN, NODE, begin, bring, count, explained, one_node, version};

/// What the emulated chip holds.
const CHIP_BYTES: usize = 128 << 10;

/// A chip's contents, with its version somewhere inside.
fn contents(version: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = version.bytes().chain(0..=255).cycle().take(CHIP_BYTES).collect();
    let text = format!("$VERSION: {version}\0");
    bytes[70_000..70_000 + text.len()].copy_from_slice(text.as_bytes());
    bytes
}

/// The description that comes along, flashrom, and a chip with the old version.
fn flashrom_toml(folder: &Path) -> Result<String> {
    ensure_command("flashrom", "flashrom")?;
    for (file, version) in [("chip", OLD), ("old.rom", OLD), ("new.rom", NEW)] {
        fs::write(folder.join(file), contents(version))?;
    }
    let programmer = format!("dummy:emulate=M25P10.RES,image={}", folder.join("chip").display());
    Ok(format!(
        "kind = \"command\", tool = \"flashrom\", work_dir = \"tools\", vendor = \"Acme\", model = \"R1\", params = {{ programmer = {programmer:?} }}"
    ))
}

#[tokio::test]
async fn flashrom_writes_a_chip_and_goes_on_when_the_node_is_killed_over_it() -> Result<()> {
    one_node(async |fleet| {
        let folder = fleet.folder().to_owned();
        let executor = flashrom_toml(&folder)?;
        let images = ["old.rom", "new.rom"].map(|file| folder.join(file));
        bring(fleet, "bios", &executor, &[(&images[0], OLD), (&images[1], NEW)]).await?;
        begin(fleet, "spring", "bios", (NEW, OLD), 10)?;
        let note = fleet.node(NODE)?.folder().join("tools").join(DEVICE).join("note.json");
        at_the_moment("flashrom to be at work", ENDS_WITHIN, async || {
            Ok(Seen::when(note.exists(), || "nothing noted".to_owned()))
        })
        .await?;
        fleet.node(NODE)?.process.kill()?;
        fleet.node(NODE)?.restart().await?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(count(&view, AttemptState::Success) == 1, "{view:?}");
        ensure!(
            fs::read(folder.join("chip"))? == contents(NEW),
            "the chip does not hold the image"
        );
        ensure!(
            version(fleet).await?.as_deref() == Some(NEW),
            "{:?}",
            version(fleet).await?
        );
        let facts = fleet.device_views().await?;
        ensure!(facts[0].facts.executor == "flashrom", "{facts:?}");
        Ok(())
    })
    .await
}

/// The tool says that all is well, and one byte is not.
#[tokio::test]
async fn a_byte_that_a_tool_flips_is_found_and_the_device_quarantined() -> Result<()> {
    one_node(async |fleet| {
        let folder = fleet.folder().to_owned();
        let executor = flashrom_toml(&folder)?.replace("\"flashrom\"", "\"../../liar.toml\"");
        let chip = folder.join("chip");
        let lie = format!(
            "flashrom -p \"$1\" -w \"$2\" || exit 3\nprintf '\\377' | dd of={} bs=1 seek=99999 conv=notrunc status=none\n",
            chip.display()
        );
        fs::write(folder.join("liar.sh"), lie)?;
        let honest = include_str!("../../../executors/tools/flashrom.toml");
        let lying = honest.replace(
            "[\"flashrom\", \"-p\", \"{programmer}\", \"-w\", \"{image}\"]",
            &format!("[\"sh\", {:?}, \"{{programmer}}\", \"{{image}}\"]", folder.join("liar.sh")),
        );
        ensure!(lying != honest, "the description does not install as it did");
        fs::write(folder.join("liar.toml"), lying.replace("name = \"flashrom\"", "name = \"liar\""))?;
        let images = ["old.rom", "new.rom"].map(|file| folder.join(file));
        bring(fleet, "bios", &executor, &[(&images[0], OLD), (&images[1], NEW)]).await?;
        begin(fleet, "spring", "bios", (NEW, OLD), 10)?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(count(&view, AttemptState::Success) == 0, "{view:?}");
        let why = explained(fleet, "spring")?;
        ensure!(why.contains("differs from the image at byte 99999") && why.contains("quarantined"), "{why}");
        ensure!(version(fleet).await?.as_deref() == Some("incomplete"), "{:?}", version(fleet).await?);
        Ok(())
    })
    .await
}

/// A vendor's tool as a stranger might have written it: slow, and with a device that is a file.
const TOOL: &str = r#"
cd "$1"
case "$2" in
    show) cat version ;;
    boot) wc -l < boot ;;
    read) cp device "$3" ;;
    install)
        echo flash >> flashes
        head -c 20 "$3" > device; sleep 0.05; cp "$3" device
        if [ -e resets ]; then echo 1.1.0 > waiting; exit 10; fi
        echo 1.1.0 > version ;;
    reset)
        echo reset >> boot
        if [ -e waiting ]; then mv waiting version; fi ;;
esac
"#;

/// What is described of it beside the rest.
const READ_BACK: &str = "[read_back]\nrun = [\"sh\", \"{tool}\", \"{world}\", \"read\", \"{out}\"]\n";
const RESET: &str = "[reset]\nwarm = { run = [\"sh\", \"{tool}\", \"{world}\", \"reset\"] }\n";

fn make(world: &Path, more: &str) -> Result<()> {
    let write = |name: &str, text: &str| fs::write(world.join(name), text).with_context(|| name.to_owned());
    let image = "new contents\n".repeat(5_000);
    for (name, text) in [
        ("tool", TOOL),
        ("version", "1.0.0\n"),
        ("boot", "1\n"),
        ("device", "old contents\n"),
        ("image", &image),
    ] {
        write(name, text)?;
    }
    if more.contains("reset") {
        write("resets", "")?;
    }
    let boot = "boot_id = { run = [\"sh\", \"{tool}\", \"{world}\", \"boot\"] }\n";
    write(
        "tool.toml",
        &format!(
            "schema = \"firmesh-tool/1\"\nname = \"stranger\"\nparams = [\"tool\", \"world\"]\n\
             version = {{ run = [\"sh\", \"{{tool}}\", \"{{world}}\", \"show\"] }}\n{}\
             [install]\nrun = [\"sh\", \"{{tool}}\", \"{{world}}\", \"install\", \"{{image}}\"]\nneeds_reset = [10]\n{more}",
            if more.contains("reset") { boot } else { "" }
        ),
    )?;
    write(
        "attempt.toml",
        &format!(
            "image = \"image\"\nvendor = \"Acme\"\nmodel = \"R1\"\nversion = \"1.1.0\"\nattempt_s = 40\nback_s = 5\npace_ms = 10\n\
             [device]\nid = \"d\"\ncomponent = \"nic\"\nexecutor = {{ kind = \"command\", tool = \"tool.toml\", work_dir = \"work\", \
             vendor = \"Acme\", model = \"R1\", params = {{ tool = {:?}, world = {:?} }} }}\n",
            world.join("tool"),
            world
        ),
    )
}

/// The tool is never run a second time but for a device whose first run was cut short with nobody to hear of it.
#[tokio::test]
async fn a_described_tool_killed_at_every_boundary_leaves_the_device_updated() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut kills = 0;
    for more in [READ_BACK, RESET, &format!("{READ_BACK}{RESET}")] {
        kills += killed_everywhere(
            folder.path(),
            &[40],
            async |world| make(world, more).map(|()| world.to_owned()),
            async |world, ended| {
                let flashes = fs::read_to_string(world.join("flashes")).unwrap_or_default();
                let flashes = flashes.lines().count();
                // A tool that dies with its starter, on a machine that has no time for it: where
                // nothing is read back nobody knows that, and it is not repeated.
                let is_unknown =
                    ended.state == AttemptState::Failed && ended.reason.contains("the update task vanished");
                if more == RESET && is_unknown && flashes <= 1 {
                    ensure!(ended.version.as_deref() == Some("1.0.0"), "it runs something else");
                    return Ok(());
                }
                ensure!(ended.state == AttemptState::Success, "it ended otherwise");
                ensure!(
                    fs::read(world.join("device"))? == fs::read(world.join("image"))?,
                    "torn"
                );
                ensure!(flashes == 1, "{flashes} flashes");
                ensure!(ended.times("stage") <= 1, "staged again");
                Ok(())
            },
        )
        .await?;
    }
    println!("killed {kills} times");
    ensure!(kills > 60, "only {kills} kills");
    Ok(())
}
