//! Who may do what.

mod permission;

pub(crate) use permission::Permission;
