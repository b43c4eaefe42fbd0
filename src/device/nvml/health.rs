//! Whether a GPU is well, from what its driver says. Pure.

use crate::device::monitor::GpuHealth;

/// XIDs that a program causes and the GPU survives: a kernel that went wrong, a channel that was stopped. NVIDIA's own
/// device plugin for Kubernetes leaves these out of account too (k8s-device-plugin, internal/rm/health.go).
const OF_PROGRAMS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// What speaks against a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signs {
    /// It does not answer any more.
    pub(super) lost: bool,
    /// The first critical error that the driver reported since we began, programs' own left out.
    pub(super) xid: Option<u64>,
    /// Errors of its memory since the driver was loaded that could not be corrected.
    pub(super) uncorrected: u64,
    /// Pages of its memory are bad and in use until the GPU is reset.
    pub(super) retiring: bool,
}

/// Whether an XID speaks against the GPU.
pub(super) fn is_of_the_gpu(xid: u64) -> bool {
    !OF_PROGRAMS.contains(&xid)
}

/// The verdict, by the gravest sign.
pub(super) fn judge(signs: &Signs) -> GpuHealth {
    let sick = |reason: String| GpuHealth::Sick { reason };
    if signs.lost {
        sick("it fell off the bus: the machine has to be restarted".to_owned())
    } else if let Some(xid) = signs.xid {
        sick(format!("the driver reported XID {xid}: look it up in NVIDIA's list of XID errors"))
    } else if signs.uncorrected > 0 {
        sick(format!("its memory has had {} uncorrectable errors: it has to be reset", signs.uncorrected))
    } else if signs.retiring {
        sick("bad pages of its memory wait to be retired: it has to be reset".to_owned())
    } else {
        GpuHealth::Well
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_one_sign_makes_a_gpu_sick_and_the_gravest_is_told() {
        let all = Signs { lost: true, xid: Some(79), uncorrected: 2, retiring: true };
        let reason = |signs: &Signs| match judge(signs) {
            GpuHealth::Sick { reason } => reason,
            GpuHealth::Well => String::new(),
        };
        assert!(reason(&all).starts_with("it fell off the bus"));
        assert!(reason(&Signs { lost: false, ..all.clone() }).contains("XID 79"));
        assert!(reason(&Signs { lost: false, xid: None, ..all.clone() }).contains("2 uncorrectable errors"));
        assert!(reason(&Signs { retiring: true, ..Signs::default() }).contains("retired"));
        assert_eq!(judge(&Signs::default()), GpuHealth::Well);
    }

    #[test]
    fn what_a_program_did_wrong_is_no_sign() {
        assert!(!is_of_the_gpu(31) && !is_of_the_gpu(13));
        assert!(is_of_the_gpu(48) && is_of_the_gpu(79));
    }
}
