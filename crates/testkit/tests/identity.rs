//! Two servers never share a node by accident, and a binary upgrade never makes a second one.

use testkit::{Integration, permit, scenarios::identity};

#[test]
fn same_prefix_other_configuration() {
    let _permit = permit();
    identity::same_prefix_other_configuration(Integration::Lua);
}

#[test]
fn same_prefix_other_configuration_with_the_module() {
    let _permit = permit();
    identity::same_prefix_other_configuration(Integration::Native);
}

#[test]
fn same_registry_by_mistake() {
    let _permit = permit();
    identity::same_registry_by_mistake(Integration::Lua);
}

#[test]
fn same_registry_by_mistake_with_the_module() {
    let _permit = permit();
    identity::same_registry_by_mistake(Integration::Native);
}

#[test]
fn same_name_by_mistake() {
    let _permit = permit();
    identity::same_name_by_mistake(Integration::Lua);
}

#[test]
fn same_name_by_mistake_with_the_module() {
    let _permit = permit();
    identity::same_name_by_mistake(Integration::Native);
}

#[test]
fn upgrade_beside_another_server() {
    let _permit = permit();
    identity::upgrade_beside_another(Integration::Lua);
}

#[test]
fn upgrade_beside_another_server_with_the_module() {
    let _permit = permit();
    identity::upgrade_beside_another(Integration::Native);
}
