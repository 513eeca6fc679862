//! The devices that a training runs on, by name, and the allocator settings that suit it.

use burn::tensor::Device;

use crate::Error;

/// Names and cargo features; `None` where the device is in every build.
const DEVICES: [(&str, Option<&str>); 6] = [
    ("cpu", None),
    ("flex", None),
    ("ndarray", Some("ndarray")),
    ("wgpu", Some("wgpu")),
    ("vulkan", Some("vulkan")),
    ("cuda", Some("cuda")),
];

/// Opens a device by its name: `cpu` (the same as `flex`), `flex`, `ndarray`, `wgpu`, `vulkan` or `cuda`.
///
/// The last three take the number of the adapter after a colon: `vulkan:1`. Everything but `flex` is a cargo feature.
///
/// Nothing in this crate asks Burn for its default device, which is CUDA wherever that is compiled in: tensors are made on the device
/// named here, and moments are saved and loaded by this crate. The environment variable `BURN_DEVICE` therefore changes nothing.
///
/// # Errors
/// [`Error::Device`] for an unknown name, a device that is not in this build (naming the feature to add) and an adapter that is not there.
pub fn open_device(name: &str) -> Result<Device, Error> {
    let refused = |what: String| Error::Device { name: name.to_owned(), what };
    let (kind, number) = match name.split_once(':') {
        None => (name, None),
        Some((kind, number)) => {
            let number: usize =
                number.parse().map_err(|_| refused(format!("asks for adapter `{number}`, which is not a number")))?;
            (kind, Some(number))
        }
    };
    let Some((_, feature)) = DEVICES.iter().find(|(known, _)| *known == kind) else {
        let known = DEVICES.map(|(known, _)| known).join(", ");
        return Err(refused(format!("is not known; known are {known}")));
    };
    if number.is_some() && matches!(kind, "cpu" | "flex" | "ndarray") {
        return Err(refused("has no adapters to choose from; leave the number out".to_owned()));
    }
    match kind {
        "cpu" | "flex" => Ok(Device::flex()),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated, reason = "upstream removes it in 0.23; until then it is asked for")]
        "ndarray" => Ok(Device::ndarray()),
        #[cfg(feature = "wgpu")]
        "wgpu" => adapter(burn::tensor::DeviceType::Wgpu, number).map_err(refused),
        #[cfg(feature = "vulkan")]
        "vulkan" => adapter(burn::tensor::DeviceType::Vulkan, number).map_err(refused),
        #[cfg(feature = "cuda")]
        "cuda" => adapter(burn::tensor::DeviceType::Cuda, number).map_err(refused),
        _ => Err(refused(format!("is not in this build; build with `--features {}`", feature.unwrap_or_default()))),
    }
}

/// The adapter with this number; the first where none is named. Asking Burn for it directly would panic at the first tensor.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "cuda"))]
fn adapter(kind: burn::tensor::DeviceType, number: Option<usize>) -> Result<Device, String> {
    let found = Device::enumerate(kind).into_vec();
    let count = found.len();
    let wanted = number.unwrap_or(0);
    found.into_iter().nth(wanted).ok_or_else(|| match count {
        0 => "has no adapter on this machine".to_owned(),
        _ => format!("has no adapter {wanted}: this machine has {count}, counted from 0"),
    })
}

/// True where the fused operations run: on Flex.
pub(crate) fn is_flex(device: &Device) -> bool {
    matches!(device.as_dispatch(), burn::backend::DispatchDevice::Flex(_))
}

/// Tells glibc to keep freed memory: every step allocates and frees the same large tensors, and giving their pages back to the
/// system and faulting them in again costs 8 to 25 % of a step. To be called first in `main`; does nothing with another allocator.
pub fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[allow(unsafe_code)]
        // SAFETY: mallopt only sets two numbers inside glibc's allocator, under its own lock.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn refusal(name: &str) -> String {
        open_device(name).unwrap_err().to_string()
    }

    #[test]
    fn cpu_means_flex() {
        assert!(is_flex(&open_device("cpu").unwrap()));
        assert_eq!(open_device("cpu").unwrap(), open_device("flex").unwrap());
    }

    #[test]
    fn unknown_names_and_impossible_numbers_are_refused() {
        assert_eq!(refusal("tpu"), "device `tpu` is not known; known are cpu, flex, ndarray, wgpu, vulkan, cuda");
        assert_eq!(refusal("wgpu:x"), "device `wgpu:x` asks for adapter `x`, which is not a number");
        assert_eq!(refusal("cpu:1"), "device `cpu:1` has no adapters to choose from; leave the number out");
    }

    #[test]
    #[cfg(not(feature = "wgpu"))]
    fn a_device_that_is_not_in_this_build_names_its_feature() {
        assert_eq!(refusal("wgpu"), "device `wgpu` is not in this build; build with `--features wgpu`");
    }
}
