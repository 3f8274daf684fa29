//! Why something is missing, and the one command that mends it: a pure function of what a check said and what is known of
//! this machine.

use hurdle_sys::probe::numbers::{EACCES, EAGAIN, EBUSY, EINVAL, ENODEV, ENOENT, ENOSPC, ENOSYS, ENXIO, EPERM, EUSERS};

use super::host::{Container, Host};
use super::trouble::{Step, Trouble};

/// What the user is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    pub(crate) why: String,
    /// `None`: nothing that the user could do at once.
    pub(crate) mend: Option<String>,
}

fn told(why: impl Into<String>, mend: impl Into<String>) -> Diagnosis {
    Diagnosis { why: why.into(), mend: Some(mend.into()) }
}

/// Explains one trouble.
pub(crate) fn diagnose(trouble: &Trouble, host: &Host) -> Diagnosis {
    let said = format!("{}: {}", trouble.step.words(), trouble.said);
    let refused = matches!(trouble.errno, EPERM | EACCES);
    match trouble.step {
        Step::Prepare if trouble.errno != EAGAIN => Diagnosis { why: said, mend: None },
        Step::Limits => limits(trouble, host),
        Step::Ranges => ranges(trouble, host),
        Step::FuseDevice => fuse_device(trouble, host, said),
        Step::FuseMount | Step::FuseInit if trouble.errno == ENODEV => {
            told("this kernel has no FUSE loaded", host.as_root("modprobe fuse"))
        }
        Step::Overlay if trouble.errno == ENODEV => {
            told("this kernel has no overlay loaded", host.as_root("modprobe overlay"))
        }
        Step::Overlay if matches!(trouble.errno, EPERM | EINVAL) && host.confined_container().is_none() => {
            Diagnosis { why: format!("{said}; overlays of ordinary users need Linux 5.11"), mend: None }
        }
        Step::SyncWakeUp if matches!(trouble.errno, EINVAL | ENOSYS) => Diagnosis {
            why: "the kernel is older than Linux 6.6; all works without it, traps take longer".into(),
            mend: None,
        },
        Step::Filter if trouble.errno == EBUSY => told(
            "system calls of this process are trapped by somebody else already (an environment, a container's manager), and one \
             listener is all that the kernel allows",
            match host.container {
                Some(Container::Lxc) => {
                    "lxc config unset NAME security.syscalls.intercept.mknod (and its like), then restart it"
                        .to_string()
                }
                _ => "run hurdle outside of it".to_string(),
            },
        ),
        Step::Filter if matches!(trouble.errno, ENOSYS | EINVAL) && host.confined_container().is_none() => {
            Diagnosis { why: format!("{said}; the kernel must be built with CONFIG_SECCOMP_FILTER"), mend: None }
        }
        Step::Memory | Step::Fd if refused && host.ptrace_scope == Some(3) => told(
            "kernel.yama.ptrace_scope=3 forbids every look into another process, until the next boot",
            format!(
                "echo kernel.yama.ptrace_scope=1 | {} && {}",
                host.as_root("tee /etc/sysctl.d/90-ptrace.conf"),
                host.as_root("reboot")
            ),
        ),
        Step::Proc if refused => hidden_proc(host, said),
        Step::Mark | Step::Seal => {
            Diagnosis { why: format!("{said}; this kernel is none that hurdle knows"), mend: None }
        }
        _ if refused || matches!(trouble.errno, ENOSYS | ENOSPC | EUSERS | EAGAIN | EINVAL) => {
            forbidden(trouble, host, said)
        }
        _ => Diagnosis { why: said, mend: None },
    }
}

/// Namespaces, or what one may do in them, are refused: by a limit, a switch, a container or a security module.
fn forbidden(trouble: &Trouble, host: &Host, said: String) -> Diagnosis {
    if matches!(trouble.errno, ENOSPC | EUSERS) {
        let lowest = host.namespace_limits.iter().min_by_key(|(_, limit)| *limit);
        return match lowest {
            Some((name, limit)) => {
                told(format!("{said}; {name} is {limit}"), host.as_root(&format!("sysctl -w {name}=15000")))
            }
            None => Diagnosis { why: format!("{said}; a limit of namespaces is reached"), mend: None },
        };
    }
    if trouble.errno == EAGAIN {
        return told(format!("{said}; the limit of the user's processes is reached"), "ulimit -u unlimited");
    }
    if !host.user_namespaces {
        return told("this kernel is built without user namespaces", "boot a kernel that has CONFIG_USER_NS=y");
    }
    if let Some(container) = host.confined_container() {
        return told(format!("{said}; this container forbids it"), allow(container));
    }
    if host.userns_clone == Some(0) && host.uid != 0 {
        return told(
            "kernel.unprivileged_userns_clone=0 keeps user namespaces for root",
            host.as_root("sysctl -w kernel.unprivileged_userns_clone=1"),
        );
    }
    if host.apparmor_restricts.is_some_and(|value| value != 0) && host.uid != 0 {
        return told(
            "kernel.apparmor_restrict_unprivileged_userns=1 (Ubuntu) takes all rights from user namespaces of programs without a profile",
            host.as_root("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        );
    }
    if host.chrooted {
        return told(
            "the caller is in a chroot, from where the kernel makes no user namespaces",
            "run hurdle outside the chroot: hurdle run --fs root:DIR",
        );
    }
    if let Some(container) = host.container {
        return told(format!("{said}; this container may forbid it"), allow(container));
    }
    if let Some(profile) = &host.apparmor {
        return told(
            format!("{said}; the AppArmor profile {profile} confines this process"),
            host.as_root(&format!("aa-complain {profile}")),
        );
    }
    let filter =
        if host.filtered { "a seccomp filter that its parent put on this process" } else { "a security module" };
    told(
        format!("{said}; perhaps {filter} forbids it"),
        host.as_root("dmesg") + " | grep -iE 'audit|apparmor|selinux|denied' | tail",
    )
}

/// What the owner of a container has to say when he starts it.
fn allow(container: Container) -> String {
    match container {
        Container::Docker => {
            "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined …"
        }
        Container::Podman => "podman run --security-opt seccomp=unconfined --security-opt unmask=ALL …",
        Container::Kubernetes => {
            "kubectl edit the pod: securityContext: {seccompProfile: {type: Unconfined}, appArmorProfile: {type: Unconfined}, procMount: Unmasked}"
        }
        Container::Lxc => "lxc config set NAME security.nesting true, then restart it",
        Container::Nspawn => "systemd-nspawn --private-users=no --system-call-filter=@mount …",
        Container::Flatpak => "flatpak-spawn --host hurdle …",
        Container::Snap => "run hurdle outside the snap (its sandbox can't be opened from inside)",
        Container::Other => "start the container without a seccomp filter, with user namespaces allowed and /proc unmasked",
    }
    .to_string()
}

/// The kernel gives a fresh /proc only to who sees all of the old one.
fn hidden_proc(host: &Host, said: String) -> Diagnosis {
    if host.proc_hidden.is_empty() {
        return forbidden(&Trouble { step: Step::Proc, errno: EPERM, said: String::new() }, host, said);
    }
    let why = format!("parts of /proc are hidden ({}), so the kernel refuses a new one", host.proc_hidden.join(", "));
    match host.container {
        Some(Container::Docker) => told(why, "docker run --security-opt systempaths=unconfined …"),
        Some(Container::Podman) => told(why, "podman run --security-opt unmask=ALL …"),
        Some(Container::Kubernetes) => told(why, "kubectl edit the pod: securityContext: {procMount: Unmasked}"),
        Some(other) => told(why, allow(other)),
        None => told(why, host.as_root(&format!("umount {}", host.proc_hidden.join(" ")))),
    }
}

/// `said` names what is short, and the command stands in the trouble already where it is a number to raise.
fn limits(trouble: &Trouble, host: &Host) -> Diagnosis {
    let what = trouble.said.as_str();
    let mend = match what.split(' ').next().unwrap_or_default() {
        name if name.starts_with("user.") || name.starts_with("kernel.") => {
            host.as_root(&format!("sysctl -w {name}=15000"))
        }
        "processes" => "ulimit -u unlimited".to_string(),
        "files" => "ulimit -n 4096".to_string(),
        "pids.max" => match host.container {
            Some(Container::Docker) => "docker run --pids-limit -1 …".to_string(),
            Some(Container::Podman) => "podman run --pids-limit -1 …".to_string(),
            _ => host.as_root("systemctl set-property user.slice TasksMax=infinity"),
        },
        _ => return Diagnosis { why: what.to_string(), mend: None },
    };
    told(format!("{what}: few environments fit side by side"), mend)
}

fn ranges(trouble: &Trouble, host: &Host) -> Diagnosis {
    let said = trouble.said.clone();
    if said.contains("not installed") {
        return told(said, host.install_uidmap());
    }
    if said.contains("grants no ids") || trouble.errno == ENOENT {
        let (first, last) = (host.free_range, host.free_range + 65_535);
        let command = format!("usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {}", host.user);
        return told(format!("no range of ids is granted to {}", host.user), host.as_root(&command));
    }
    if host.no_new_privileges {
        return told(
            "newuidmap can't gain its privilege: no_new_privs is set on the caller",
            match host.container {
                Some(Container::Docker) => "docker run without --security-opt no-new-privileges",
                Some(Container::Kubernetes) => {
                    "kubectl edit the pod: securityContext: {allowPrivilegeEscalation: true}"
                }
                _ => "start the shell without no_new_privs (systemd: NoNewPrivileges=no)",
            },
        );
    }
    told(said, host.as_root("chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap"))
}

fn fuse_device(trouble: &Trouble, host: &Host, said: String) -> Diagnosis {
    let device = match host.container {
        Some(Container::Docker) => Some("docker run --device /dev/fuse …"),
        Some(Container::Podman) => Some("podman run --device /dev/fuse …"),
        Some(Container::Lxc) => Some("lxc config device add NAME fuse unix-char path=/dev/fuse mode=0666"),
        _ => None,
    };
    match (trouble.errno, device) {
        (ENOENT | EPERM, Some(command)) => told("this container has no /dev/fuse", command),
        (ENOENT | ENODEV | ENXIO, _) => told("there is no /dev/fuse", host.as_root("modprobe fuse")),
        (EACCES, _) => told("/dev/fuse is closed to ordinary users", host.as_root("chmod 0666 /dev/fuse")),
        _ => Diagnosis { why: said, mend: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Host {
        Host { uid: 1000, user: "ann".into(), user_namespaces: true, free_range: 165_536, ..Host::default() }
    }

    fn at(step: Step, errno: i32, said: &str) -> Trouble {
        Trouble { step, errno, said: said.into() }
    }

    fn mend(step: Step, errno: i32, host: &Host) -> String {
        diagnose(&at(step, errno, "no"), host).mend.unwrap_or_default()
    }

    #[test]
    fn each_switch_of_a_distribution_has_its_command() {
        let ubuntu = Host { apparmor_restricts: Some(1), ..user() };
        let command = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0";
        // Ubuntu lets the namespace be made and refuses what is done in it.
        assert_eq!(mend(Step::Map, EACCES, &ubuntu), command);
        assert_eq!(mend(Step::Loopback, EPERM, &ubuntu), command);
        let debian = Host { userns_clone: Some(0), ..user() };
        assert_eq!(mend(Step::Namespaces, EPERM, &debian), "sudo sysctl -w kernel.unprivileged_userns_clone=1");
        let full = Host {
            namespace_limits: vec![("user.max_pid_namespaces".into(), 900), ("user.max_user_namespaces".into(), 0)],
            ..user()
        };
        assert_eq!(mend(Step::Namespaces, ENOSPC, &full), "sudo sysctl -w user.max_user_namespaces=15000");
        assert!(mend(Step::Namespaces, EPERM, &Host { chrooted: true, ..user() }).contains("outside the chroot"));
        assert!(mend(Step::Namespaces, EINVAL, &Host { user_namespaces: false, ..user() }).contains("CONFIG_USER_NS"));
        assert_eq!(mend(Step::Namespaces, EAGAIN, &user()), "ulimit -u unlimited");
    }

    #[test]
    fn a_container_that_confines_comes_before_the_switches_of_its_host() {
        let docker = Host { container: Some(Container::Docker), apparmor_restricts: Some(1), ..user() };
        let confined = Host { filtered: true, ..docker.clone() };
        assert!(mend(Step::Namespaces, EPERM, &confined).starts_with("docker run --security-opt seccomp=unconfined"));
        assert!(mend(Step::Namespaces, ENOSYS, &confined).starts_with("docker run"));
        assert!(mend(Step::Map, EACCES, &docker).contains("sysctl"), "an unconfined one is subject to the host's");
        let armored = Host { apparmor: Some("docker-default".into()), ..docker };
        assert!(mend(Step::Receive, EACCES, &armored).contains("apparmor=unconfined"));
        assert!(mend(Step::Memory, EPERM, &confined).starts_with("docker run"));
    }

    #[test]
    fn a_masked_proc_is_told_from_a_refused_one() {
        let masked = Host { proc_hidden: vec!["/proc/kcore".into(), "/proc/sys".into()], ..user() };
        assert_eq!(mend(Step::Proc, EPERM, &masked), "sudo umount /proc/kcore /proc/sys");
        let podman = Host { container: Some(Container::Podman), ..masked };
        assert_eq!(mend(Step::Proc, EPERM, &podman), "podman run --security-opt unmask=ALL …");
        let ubuntu = Host { apparmor_restricts: Some(1), ..user() };
        assert!(mend(Step::Proc, EPERM, &ubuntu).contains("apparmor_restrict"));
    }

    #[test]
    fn ranges_of_ids_are_mended_by_what_is_missing() {
        let said = |text: &str, host: &Host| diagnose(&at(Step::Ranges, 0, text), host).mend.unwrap_or_default();
        assert_eq!(said("newuidmap is not installed (package uidmap)", &user()), "sudo apt-get install uidmap");
        assert_eq!(
            said("/etc/subuid grants no ids to uid 1000", &user()),
            "sudo usermod --add-subuids 165536-231071 --add-subgids 165536-231071 ann"
        );
        let refused = "newuidmap: write to uid_map failed: Operation not permitted";
        assert!(said(refused, &user()).contains("chmod u+s"));
        assert!(said(refused, &Host { no_new_privileges: true, ..user() }).contains("no_new_privs"));
    }

    #[test]
    fn devices_limits_and_the_rest() {
        assert_eq!(mend(Step::FuseDevice, EACCES, &user()), "sudo chmod 0666 /dev/fuse");
        assert_eq!(mend(Step::FuseDevice, ENOENT, &Host { uid: 0, ..user() }), "modprobe fuse");
        let docker = Host { container: Some(Container::Docker), ..user() };
        assert_eq!(mend(Step::FuseDevice, ENOENT, &docker), "docker run --device /dev/fuse …");
        assert!(mend(Step::Memory, EPERM, &Host { ptrace_scope: Some(3), ..user() }).contains("ptrace_scope=1"));
        assert!(mend(Step::Filter, EBUSY, &user()).contains("outside"));
        let low = diagnose(&at(Step::Limits, 0, "user.max_net_namespaces is 12"), &user());
        assert_eq!(low.mend.as_deref(), Some("sudo sysctl -w user.max_net_namespaces=15000"));
        assert_eq!(diagnose(&at(Step::SyncWakeUp, EINVAL, "Invalid argument"), &user()).mend, None);
        assert!(mend(Step::Namespaces, EPERM, &user()).contains("dmesg"), "unknown: where to look");
    }
}
