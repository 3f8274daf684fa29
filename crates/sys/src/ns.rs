//! Namespaces and id maps (clone3(2), user_namespaces(7)).
