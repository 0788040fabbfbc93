//! The policy: who may do what, as text (`access.cedar`) that the Cedar engine decides by.
//!
//! Invariants: what no policy allows is forbidden; an installation's own policies are held against the schema before anything
//! starts; a policy that cannot be evaluated forbids.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
};

use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicySet, Request,
    RestrictedExpression, Schema, ValidationMode, Validator,
};
use firmesh_protocol::{
    api::{Grant, Limits, PermissionView, Role},
    ids::DeviceId,
};
use miette::Diagnostic;
use tracing::error;

use super::{
    Permission,
    identity::{Identity, Kind, Means, Places, Subject},
};
use crate::ceremony::{ReadFileError, read_bounded};

const SCHEMA: &str = include_str!("access.cedarschema");
const BUILT_IN: &str = include_str!("access.cedar");

/// The longest file of an installation's own policies.
const POLICY_BYTES_MAX: u64 = 1 << 20;

/// Why policies cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file.
    #[error("the access policy cannot be read")]
    Read(#[from] ReadFileError),
    /// It is not in the language.
    #[error("{} is not in the policy language (https://docs.cedarpolicy.com): {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        problem: String,
    },
    /// It speaks of what there is not.
    #[error("{} does not fit what policies can speak of (coordinator/src/access/access.cedarschema): {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What, and why.
        problem: String,
    },
}

/// All policies.
pub(crate) struct Policy {
    authorizer: Authorizer,
    policies: PolicySet,
    /// The roles, and the permissions with their groups.
    base: Entities,
    matrix: BTreeMap<Permission, BTreeSet<Role>>,
    /// Whether an installation has policies of its own, which may look at anything.
    has_own: bool,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy")
            .field("policies", &self.policies.num_of_policies())
            .finish_non_exhaustive()
    }
}

impl Policy {
    /// The built-in policies, and an installation's own.
    pub(crate) fn load(own: Option<&Path>) -> Result<Self, PolicyError> {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("a test reads the schema");
        let mut policies: PolicySet = BUILT_IN.parse().expect("a test reads the policies");
        if let Some(path) = own {
            let bytes = read_bounded(path, POLICY_BYTES_MAX)?;
            let malformed = |problem: String| PolicyError::Malformed {
                path: path.to_owned(),
                problem,
            };
            let text = String::from_utf8(bytes).map_err(|error| malformed(error.to_string()))?;
            let own: PolicySet = text.parse().map_err(|errors: cedar_policy::ParseErrors| {
                let problems: Vec<_> = errors.iter().map(|error| located(&text, error)).collect();
                malformed(problems.join("; "))
            })?;
            let checked = Validator::new(schema.clone()).validate(&own, ValidationMode::Strict);
            if !checked.validation_passed() {
                let problems: Vec<_> = checked.validation_errors().map(|error| located(&text, error)).collect();
                return Err(PolicyError::Invalid {
                    path: path.to_owned(),
                    problem: problems.join("; "),
                });
            }
            policies
                .merge(&own, true)
                .map_err(|error| malformed(error.to_string()))?;
        }
        let role = |role: Role, parents: &[Role]| {
            let parents = parents.iter().map(|parent| uid("Role", parent.name()));
            Entity::new_no_attrs(uid("Role", role.name()), parents.collect())
        };
        let roles = [
            role(Role::Viewer, &[]),
            role(Role::Operator, &[Role::Viewer]),
            role(Role::Approver, &[Role::Viewer]),
            role(Role::Admin, &[Role::Operator, Role::Approver]),
            role(Role::Device, &[]),
        ];
        let actions = schema.action_entities().expect("a test reads the schema");
        let mut policy = Self {
            authorizer: Authorizer::new(),
            policies,
            base: actions.add_entities(roles, None).expect("roles are no actions"),
            matrix: BTreeMap::new(),
            has_own: own.is_some(),
        };
        policy.matrix = policy.all_roles();
        Ok(policy)
    }

    fn all_roles(&self) -> BTreeMap<Permission, BTreeSet<Role>> {
        let mut matrix: BTreeMap<_, BTreeSet<_>> = Permission::ALL.iter().map(|one| (*one, BTreeSet::new())).collect();
        for role in Role::ALL {
            let who = Identity {
                name: "somebody".to_owned(),
                means: Means::ApiKey,
                grants: vec![Grant {
                    role,
                    limits: Limits::default(),
                }],
                groups: BTreeSet::new(),
                device: (role == Role::Device).then(|| DeviceId::new("device").expect("a name")),
                expires: None,
            };
            for permission in self.permissions(&who) {
                matrix.entry(permission).or_default().insert(role);
            }
        }
        matrix
    }

    /// Whether somebody may do this there: one of his roles is enough.
    pub(crate) fn allows(&self, who: &Identity, permission: Permission, about: &Subject) -> bool {
        let mut grants = who.grants.iter().map(Some).collect::<Vec<_>>();
        if grants.is_empty() {
            // The policies may know him by his name or his groups.
            grants.push(None);
        }
        grants.into_iter().any(|grant| {
            self.decide(who, grant, permission, about).unwrap_or_else(|problem| {
                error!(
                    error = problem,
                    by = who.name,
                    permission = permission.name(),
                    "a policy cannot be evaluated"
                );
                false
            })
        })
    }

    /// Whether it is worth to find out what a request is about: false if none of his roles has the permission anywhere.
    pub(crate) fn may_allow(&self, who: &Identity, permission: Permission) -> bool {
        let has = |grant: &Grant| self.roles_with(permission).contains(&grant.role);
        self.has_own || permission == Permission::ApiRead || who.grants.iter().any(has)
    }

    /// What somebody may do somewhere at least.
    pub(crate) fn permissions(&self, who: &Identity) -> Vec<Permission> {
        let mut without_limits = who.clone();
        for grant in &mut without_limits.grants {
            grant.limits = Limits::default();
        }
        let about = Subject {
            kind: Kind::Device,
            device: who.device.as_ref().map(DeviceId::to_string),
            places: None,
        };
        let all = Permission::ALL.iter().copied();
        all.filter(|permission| self.allows(&without_limits, *permission, &about))
            .collect()
    }

    /// The matrix of roles and permissions, as the policies have it.
    pub(crate) fn matrix(&self) -> Vec<PermissionView> {
        let view = |permission: &Permission| PermissionView {
            permission: permission.name().to_owned(),
            what: permission.what().to_owned(),
            roles: self.roles_with(*permission).clone(),
        };
        Permission::ALL.iter().map(view).collect()
    }

    /// The roles that have a permission where no limits stand in the way.
    pub(crate) fn roles_with(&self, permission: Permission) -> &BTreeSet<Role> {
        &self.matrix[&permission]
    }

    fn decide(
        &self,
        who: &Identity,
        grant: Option<&Grant>,
        permission: Permission,
        about: &Subject,
    ) -> Result<bool, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let (principal, resource) = (uid("Principal", &who.name), uid("Resource", about.kind.name()));
        let action = uid("Action", permission.name());
        let parents = grant.map(|grant| uid("Role", grant.role.name()));
        let entities = [
            Entity::new(
                principal.clone(),
                principal_attributes(who, grant),
                parents.into_iter().collect(),
            ),
            Entity::new(resource.clone(), resource_attributes(about), HashSet::new()),
        ];
        let entities: Vec<_> = entities
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|error| text(&error))?;
        let entities = self.base.clone().add_entities(entities, None);
        let entities = entities.map_err(|error| text(&error))?;
        let request = Request::new(principal, action, resource, Context::empty(), None);
        let request = request.map_err(|error| text(&error))?;
        let response = self.authorizer.is_authorized(&request, &self.policies, &entities);
        match response.diagnostics().errors().next() {
            Some(error) => Err(text(error)),
            None => Ok(response.decision() == Decision::Allow),
        }
    }
}

fn principal_attributes(who: &Identity, grant: Option<&Grant>) -> HashMap<String, RestrictedExpression> {
    let mut attributes = HashMap::from([
        ("means".to_owned(), text(who.means.name())),
        ("groups".to_owned(), set(&who.groups)),
    ]);
    attributes.extend(
        who.device
            .iter()
            .map(|device| ("device".to_owned(), text(device.as_str()))),
    );
    let limits = grant.map(|grant| &grant.limits).into_iter().flat_map(Limits::named);
    attributes.extend(limits.map(|(name, values)| (name.to_owned(), set(values))));
    attributes
}

fn resource_attributes(about: &Subject) -> HashMap<String, RestrictedExpression> {
    let mut attributes = HashMap::from([("kind".to_owned(), text(about.kind.name()))]);
    attributes.extend(about.device.iter().map(|device| ("device".to_owned(), text(device))));
    if let Some(Places {
        sites,
        regions,
        vendors,
        environments,
    }) = &about.places
    {
        for (name, values) in [
            ("sites", sites),
            ("regions", regions),
            ("vendors", vendors),
            ("environments", environments),
        ] {
            attributes.insert(name.to_owned(), set(values));
        }
    }
    attributes
}

fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}

fn set(values: &BTreeSet<String>) -> RestrictedExpression {
    RestrictedExpression::new_set(values.iter().map(|value| text(value)))
}

fn uid(kind: &str, id: &str) -> EntityUid {
    let kind: EntityTypeName = kind.parse().expect("a name of ours");
    EntityUid::from_type_name_and_id(kind, EntityId::new(id))
}

/// A problem with its line, where it has one.
fn located(source: &str, problem: &dyn Diagnostic) -> String {
    let place = problem.labels().and_then(|mut labels| labels.next());
    match place {
        Some(label) => {
            let before = source.bytes().take(label.offset()).filter(|byte| *byte == b'\n');
            format!("line {}: {problem}", before.count() + 1)
        }
        None => problem.to_string(),
    }
}
