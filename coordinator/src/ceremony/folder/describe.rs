//! What a file says, line by line, for a person about to sign it.

use firmesh_protocol::{
    manifest::{CampaignKind, CampaignManifest, ReleaseInfo, Strategy},
    trust::{DelegatedRole, KeyId, RepositoryError, RoleKeys, Root, SignedFile, Target, Targets},
    units::BasisPoints,
};

use super::{FolderError, TrustFolder};

impl TrustFolder {
    /// What a file says, line by line, for a person about to sign it.
    pub fn describe(&self, file: &str) -> Result<Vec<String>, FolderError> {
        let lines = match file {
            "targets.json" => self.describe_delegations(),
            "releases.json" => describe_releases(self.repository.releases()),
            "campaigns.json" => self.describe_campaigns()?,
            root => self.describe_root(root)?,
        };
        Ok(lines.iter().map(|line| plain(line)).collect())
    }

    /// A root of the chain, as it is in memory: what is shown is what is signed.
    pub(super) fn root(&self, file: &str) -> Result<Root, FolderError> {
        let files = self.repository.files();
        let bytes = files
            .get(file)
            .ok_or_else(|| self.unfit(RepositoryError::NoFile { file: file.to_owned() }))?;
        let root = SignedFile::from_bytes(file, bytes).and_then(|signed| signed.unverified(file));
        root.map_err(|source| self.unfit(source.into()))
    }

    fn describe_root(&self, file: &str) -> Result<Vec<String>, FolderError> {
        let root = self.root(file)?;
        let line =
            |(name, role): (&String, &RoleKeys)| format!("{name}: {} of {}", role.threshold, keys(role.keyids.iter()));
        Ok(root.roles.iter().map(line).collect())
    }

    fn describe_delegations(&self) -> Vec<String> {
        let delegations = self.repository.targets().delegations.as_ref();
        let line = |role: &DelegatedRole| {
            let paths = role.paths.as_deref().unwrap_or_default().join(", ");
            format!(
                "{paths} to {}: {} of {}",
                role.name,
                role.threshold,
                keys(role.keyids.iter())
            )
        };
        delegations.map_or_else(Vec::new, |delegations| delegations.roles.iter().map(line).collect())
    }

    fn describe_campaigns(&self) -> Result<Vec<String>, FolderError> {
        let (targets, manifests) = (&self.repository.campaigns().targets, self.manifests()?);
        let line = |(name, target): (&String, &Target)| {
            let digest = target
                .sha256()
                .map_or_else(|| "none".to_owned(), |digest| digest.to_string());
            let rules = manifests
                .get(name)
                .map(|text| CampaignManifest::from_bytes(text.as_bytes()));
            let rules = match rules {
                Some(Ok(manifest)) => describe_manifest(&manifest),
                Some(Err(error)) => format!("NOT A USABLE MANIFEST: {error}"),
                None => "ITS MANIFEST IS NOT IN THIS FOLDER, only the digest can be compared".to_owned(),
            };
            format!("{name} sha256 {digest}: {rules}")
        };
        Ok(targets.iter().map(line).collect())
    }
}

fn describe_releases(releases: &Targets) -> Vec<String> {
    let line = |(name, target): (&String, &Target)| {
        let digest = target
            .sha256()
            .map_or_else(|| "none".to_owned(), |digest| digest.to_string());
        let what = match serde_json::from_value::<ReleaseInfo>(target.custom.clone().unwrap_or_default()) {
            Ok(info) => format!(
                "{} {} {} {}, security epoch {}",
                info.vendor,
                info.models.join("/"),
                info.component,
                info.version,
                info.security_epoch
            ),
            Err(error) => format!("NOT A USABLE RELEASE: {error}"),
        };
        format!("{name} ({} bytes) sha256 {digest}: {what}", target.length)
    };
    releases.targets.iter().map(line).collect()
}

fn describe_manifest(manifest: &CampaignManifest) -> String {
    let releases: Vec<_> = manifest.releases.iter().map(|pinned| pinned.target.as_str()).collect();
    let hops: Vec<_> = manifest.hops.iter().map(|pinned| pinned.target.as_str()).collect();
    let over = match hops.is_empty() {
        true => String::new(),
        false => format!(", going over {} where needed", hops.join(", ")),
    };
    let what = match manifest.kind {
        CampaignKind::Update => "installs",
        CampaignKind::Provisioning => "brings up whole servers, firmware first, with",
    };
    let rehearsal = manifest.rehearsal_sha256;
    let rehearsed = rehearsal.map_or_else(String::new, |sha256| format!("; rehearsal sha256 {sha256}"));
    format!(
        "{what} {}{over}; {}; at most {} per rack and {} in all; expires {}; plan sha256 {}{rehearsed}",
        releases.join(", "),
        describe_strategy(&manifest.strategy),
        manifest.caps.per_rack,
        manifest.caps.total,
        manifest.expires,
        manifest.plan_sha256
    )
}

fn describe_strategy(strategy: &Strategy) -> String {
    let list = |all: &[BasisPoints]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match strategy {
        Strategy::Direct {} => "all in one wave".to_owned(),
        Strategy::Canary { shares } => format!("waves up to {}", list(shares)),
        Strategy::Regional { order, shares } => {
            let order: Vec<_> = order.iter().map(ToString::to_string).collect();
            format!(
                "place by place, {}, each in waves up to {}",
                order.join(", "),
                list(shares)
            )
        }
        Strategy::BlueGreen {
            by,
            order,
            switch,
            drain,
        } => {
            let order: Vec<_> = order.iter().map(ToString::to_string).collect();
            format!(
                "pool by pool by {by}, {}, switched by the webhook {switch} and drained by {drain}",
                order.join(" before ")
            )
        }
        Strategy::Rolling {
            batch,
            max_concurrent_batches: 1,
        } => format!("batches of {batch} devices"),
        Strategy::Rolling {
            batch,
            max_concurrent_batches,
        } => format!("batches of {batch} devices, {max_concurrent_batches} at once"),
        Strategy::Growing { first, percent } => {
            format!("batches from {first} devices on, each {percent} % of the one before it")
        }
    }
}

fn keys<'a>(ids: impl ExactSizeIterator<Item = &'a KeyId>) -> String {
    let count = ids.len();
    let short: Vec<_> = ids.map(|id| id.as_str().chars().take(12).collect::<String>()).collect();
    format!("{count} keys ({})", short.join(", "))
}

/// Text from somebody else's file without what could move a terminal's cursor or turn the direction of writing.
pub(super) fn plain(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_summary_moves_the_cursor() {
        assert_eq!(plain("a\u{1b}[2Kb\u{202e}é"), "a\\u{1b}[2Kb\\u{202e}é");
    }
}
