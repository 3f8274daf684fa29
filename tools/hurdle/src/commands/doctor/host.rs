//! What is known of this machine: who forbids what here, and how software is installed. Gathered once, without trying anything.

use std::path::Path;

use hurdle_sys::process::effective_ids;

/// Which kind of container the caller is in; its owner has to allow what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Container {
    Docker,
    Podman,
    Kubernetes,
    Lxc,
    Nspawn,
    Flatpak,
    Snap,
    /// Some other that says so in `container=`.
    Other,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    pub(crate) uid: u32,
    /// Name of the caller; his number if he has none.
    pub(crate) user: String,
    pub(crate) container: Option<Container>,
    /// A seccomp filter is on the caller already.
    pub(crate) filtered: bool,
    pub(crate) no_new_privileges: bool,
    /// The AppArmor profile that confines the caller.
    pub(crate) apparmor: Option<String>,
    /// The caller's root is not the root of a mount: chroot(2).
    pub(crate) chrooted: bool,
    /// The kernel has user namespaces at all.
    pub(crate) user_namespaces: bool,
    /// kernel.unprivileged_userns_clone (Debian's kernels, Arch's hardened one)
    pub(crate) userns_clone: Option<u64>,
    /// kernel.apparmor_restrict_unprivileged_userns (Ubuntu)
    pub(crate) apparmor_restricts: Option<u64>,
    /// kernel.yama.ptrace_scope
    pub(crate) ptrace_scope: Option<u64>,
    /// user.max_*_namespaces, by name
    pub(crate) namespace_limits: Vec<(String, u64)>,
    /// Mounts that hide a part of /proc.
    pub(crate) proc_hidden: Vec<String>,
    /// ID and ID_LIKE of os-release(5).
    pub(crate) distribution: Vec<String>,
    /// First id above all ranges that /etc/subuid and /etc/subgid give away.
    pub(crate) free_range: u64,
}

/// The kinds of namespaces that an environment has.
const KINDS: &[&str] = &["user", "mnt", "pid", "ipc", "uts", "net"];

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &str) -> Option<u64> {
    text(path).trim().parse().ok()
}

impl Host {
    pub(crate) fn read() -> Host {
        let uid = effective_ids().0;
        let status = text("/proc/self/status");
        let mounts = text("/proc/self/mountinfo");
        Host {
            uid,
            user: user_name(&text("/etc/passwd"), uid).unwrap_or_else(|| uid.to_string()),
            container: container(&|path| Path::new(path).exists(), &|name| std::env::var(name).ok()),
            filtered: field(&status, "Seccomp") == Some(2),
            no_new_privileges: field(&status, "NoNewPrivs") == Some(1),
            apparmor: apparmor(&text("/proc/self/attr/current")),
            chrooted: chrooted(&mounts),
            user_namespaces: Path::new("/proc/self/ns/user").exists(),
            userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            ptrace_scope: number("/proc/sys/kernel/yama/ptrace_scope"),
            namespace_limits: KINDS
                .iter()
                .filter_map(|kind| {
                    let name = format!("max_{kind}_namespaces");
                    Some((format!("user.{name}"), number(&format!("/proc/sys/user/{name}"))?))
                })
                .collect(),
            proc_hidden: below_proc(&mounts),
            distribution: distribution(&text("/etc/os-release")),
            free_range: [text("/etc/subuid"), text("/etc/subgid")].iter().map(|t| free_range(t)).max().unwrap_or(0),
        }
    }

    /// A container's own profile or filter is on the caller, so it is the container that forbids things.
    pub(crate) fn confined_container(&self) -> Option<Container> {
        self.container.filter(|_| self.filtered || self.apparmor.is_some())
    }

    /// A command that only root may run.
    pub(crate) fn as_root(&self, command: &str) -> String {
        if self.uid == 0 { command.to_string() } else { format!("sudo {command}") }
    }

    /// How to install the package that holds newuidmap.
    pub(crate) fn install_uidmap(&self) -> String {
        let like = |name: &str| self.distribution.iter().any(|word| word == name);
        self.as_root(if like("fedora") || like("rhel") {
            "dnf install shadow-utils"
        } else if like("arch") {
            "pacman -S shadow"
        } else if like("alpine") {
            "apk add shadow-uidmap"
        } else if like("suse") || like("opensuse") {
            "zypper install shadow"
        } else {
            "apt-get install uidmap"
        })
    }
}

/// A number in /proc/PID/status.
fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_string())
    })
}

fn container(exists: &dyn Fn(&str) -> bool, variable: &dyn Fn(&str) -> Option<String>) -> Option<Container> {
    if exists("/.flatpak-info") {
        return Some(Container::Flatpak);
    }
    if variable("SNAP").is_some() && variable("SNAP_NAME").is_some() {
        return Some(Container::Snap);
    }
    if variable("KUBERNETES_SERVICE_HOST").is_some() {
        return Some(Container::Kubernetes);
    }
    if exists("/run/.containerenv") {
        return Some(Container::Podman);
    }
    if exists("/.dockerenv") {
        return Some(Container::Docker);
    }
    match variable("container")?.as_str() {
        "" => None,
        "docker" => Some(Container::Docker),
        "podman" | "oci" => Some(Container::Podman),
        "lxc" | "lxc-libvirt" => Some(Container::Lxc),
        "systemd-nspawn" => Some(Container::Nspawn),
        _ => Some(Container::Other),
    }
}

/// The profile in /proc/PID/attr/current, if it confines.
fn apparmor(current: &str) -> Option<String> {
    let current = current.trim_end_matches(['\0', '\n']);
    // SELinux has `user:role:type:level` in the same file.
    let profile = current.strip_suffix(" (enforce)")?;
    (profile != "unconfined").then(|| profile.to_string())
}

/// The mount point of each line of /proc/PID/mountinfo.
fn mount_points(mountinfo: &str) -> impl Iterator<Item = &str> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4))
}

/// No mount at `/` is visible from inside a chroot(2), unless its root happens to be one.
fn chrooted(mountinfo: &str) -> bool {
    !mountinfo.is_empty() && mount_points(mountinfo).all(|point| point != "/")
}

/// binfmt_misc and autofs on empty directories that proc keeps for mounts hide nothing.
fn below_proc(mountinfo: &str) -> Vec<String> {
    let mut points: Vec<String> = mount_points(mountinfo)
        .filter(|point| point.starts_with("/proc/") && *point != "/proc/sys/fs/binfmt_misc")
        .map(str::to_string)
        .collect();
    points.sort();
    points.dedup();
    points
}

fn distribution(os_release: &str) -> Vec<String> {
    let values =
        os_release.lines().filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")));
    values.flat_map(|value| value.trim_matches('"').split_whitespace()).map(str::to_string).collect()
}

fn free_range(subids: &str) -> u64 {
    let ends = subids.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(1).map(|field| field.trim().parse::<u64>().ok());
        Some(fields.next()?? + fields.next()??)
    });
    ends.max().unwrap_or(0).max(100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_told_apart() {
        let none = |_: &str| None;
        let at = |place: &'static str| move |path: &str| path == place;
        let says = |value: &'static str| move |name: &str| (name == "container").then(|| value.to_string());
        assert_eq!(container(&|_| false, &none), None);
        assert_eq!(container(&at("/.dockerenv"), &none), Some(Container::Docker));
        assert_eq!(container(&at("/run/.containerenv"), &says("podman")), Some(Container::Podman));
        assert_eq!(container(&|_| false, &says("lxc")), Some(Container::Lxc));
        assert_eq!(container(&|_| false, &says("new-kind")), Some(Container::Other));
        let pod = |name: &str| (name == "KUBERNETES_SERVICE_HOST").then(|| "10.0.0.1".to_string());
        assert_eq!(container(&at("/.dockerenv"), &pod), Some(Container::Kubernetes));
    }

    #[test]
    fn status_fields_are_matched_whole() {
        let status = "Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t7\n";
        assert_eq!(field(status, "Seccomp"), Some(2));
        assert_eq!(field(status, "Seccomp_filters"), Some(7));
        assert_eq!(field(status, "NoNewPrivs"), Some(1));
        assert_eq!(field(status, "NoNew"), None);
    }

    #[test]
    fn a_profile_confines_only_where_it_is_enforced() {
        assert_eq!(apparmor("docker-default (enforce)\n").as_deref(), Some("docker-default"));
        assert_eq!(apparmor("unconfined\n"), None);
        assert_eq!(apparmor("firefox (complain)\n"), None);
        assert_eq!(apparmor("system_u:system_r:container_t:s0:c1,c2\0"), None);
        assert_eq!(apparmor(""), None);
    }

    const MOUNTS: &str = "\
        22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        23 22 0:21 / /proc rw,nosuid shared:2 - proc proc rw\n\
        24 23 0:22 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n\
        25 23 0:23 / /proc/kcore rw,nosuid - tmpfs tmpfs rw\n\
        26 23 0:21 /sys /proc/sys ro,nosuid - proc proc rw\n";

    #[test]
    fn mounts_tell_of_a_chroot_and_of_hidden_parts_of_proc() {
        assert!(!chrooted(MOUNTS));
        assert_eq!(below_proc(MOUNTS), ["/proc/kcore", "/proc/sys"]);
        assert!(chrooted("31 30 0:21 / /proc rw - proc proc rw\n"));
        assert!(!chrooted(""), "no /proc is no proof");
    }

    #[test]
    fn the_package_manager_follows_os_release() {
        let on = |os_release: &str, uid| {
            Host { uid, distribution: distribution(os_release), ..Host::default() }.install_uidmap()
        };
        assert_eq!(on("NAME=\"Ubuntu\"\nID=ubuntu\nID_LIKE=debian\n", 1000), "sudo apt-get install uidmap");
        assert_eq!(on("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", 0), "dnf install shadow-utils");
        assert_eq!(on("ID=alpine\n", 0), "apk add shadow-uidmap");
    }

    #[test]
    fn a_new_range_lies_above_all_others() {
        assert_eq!(free_range(""), 100_000);
        assert_eq!(free_range("a:100000:65536\nb:165536:65536\n"), 231_072);
        assert_eq!(free_range("# nothing\nbad:x:1\n"), 100_000);
    }
}
