//! Halves as their bits, for machines without instructions for them.

/// IEEE 754 binary16, widened exactly.
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    match magnitude {
        // 2¹⁵ · 2⁻¹⁵ and the like: subnormals are whole numbers of 2⁻²⁴.
        0..0x0400 => f32::from_bits(sign | (magnitude as f32 * f32::from_bits(0x3380_0000)).to_bits()),
        0x0400..0x7c00 => f32::from_bits(sign | ((magnitude << 13) + 0x3800_0000)),
        _ => f32::from_bits(sign | 0x7f80_0000 | (magnitude << 13)),
    }
}

/// bfloat16, widened exactly.
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// IEEE 754 binary16, rounded to the nearest, ties to even.
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    let half = match magnitude {
        // Half of the smallest subnormal and below: zero, as the tie is.
        0..=0x3300_0000 => 0,
        // Adding 2⁻¹ leaves a subnormal's whole number of 2⁻²⁴ in the low bits, rounded as the addition rounds.
        0x3300_0001..0x3880_0000 => ((f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()) as u16,
        // A carry out of the digits goes on into the exponent, up to infinity, as it should.
        0x3880_0000..0x7f80_0000 => {
            let rounded = magnitude - 0x3800_0000 + 0x0fff + ((magnitude >> 13) & 1);
            (rounded >> 13).min(0x7c00) as u16
        }
        0x7f80_0000 => 0x7c00,
        _ => 0x7e00 | (magnitude >> 13) as u16 & 0x03ff,
    };
    sign | half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_what_the_half_crate_says() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits);
            let found = f16_to_f32(bits);
            if expected.is_nan() {
                assert!(found.is_nan());
                continue;
            }
            assert_eq!(found.to_bits(), expected.to_f32().to_bits(), "{bits:#x}");
            assert_eq!(f32_to_f16(found), bits);
            assert_eq!(bf16_to_f32(bits).is_nan(), half::bf16::from_bits(bits).is_nan());
        }
    }

    #[test]
    fn rounding_is_what_the_half_crate_says() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x0fff, 0x1000, 0x1001, 0x2000, 0x3000, 0x7fff, 0x8000, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let (found, expected) = (f32_to_f16(value), half::f16::from_f32(value));
                assert!(found == expected.to_bits() || value.is_nan() && half::f16::from_bits(found).is_nan(), "{value:e}");
            }
        }
    }
}
