//! How fast a figure grows with a size. Pure: points in, numbers out.

/// A step counts as faster than its bound if it is by more than this: noise alone is less.
const TOLERANCE: f64 = 1.25;

/// The exponent of the growth: the slope of the least-squares line through the points (size, figure), both axes logarithmic. Points that
/// are not positive are left out; none, if fewer than two sizes are left.
pub fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs = points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0);
    let logs: Vec<_> = logs.map(|(x, y)| (x.ln(), y.ln())).collect();
    let count = logs.len() as f64;
    let x = logs.iter().map(|point| point.0).sum::<f64>() / count;
    let y = logs.iter().map(|point| point.1).sum::<f64>() / count;
    let width: f64 = logs.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = logs.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / width;
    (width > 0.0).then_some(slope)
}

/// The sizes at which the figure has grown by a greater exponent than that since the size before.
pub fn faster(points: &[(f64, f64)], exponent: f64) -> Vec<f64> {
    let grows = |pair: &&[(f64, f64)]| {
        let ((before_x, before), (x, after)) = (pair[0], pair[1]);
        before > 0.0 && after > before * (x / before_x).powf(exponent) * TOLERANCE
    };
    points.windows(2).filter(grows).map(|pair| pair[1].0).collect()
}

/// The figure for each one more, from the first point to the last.
pub fn marginal(points: &[(f64, f64)]) -> Option<f64> {
    let ((first_x, first), (last_x, last)) = (points.first()?, points.last()?);
    (last_x > first_x).then(|| (last - first) / (last_x - first_x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(figure: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        [100.0, 1000.0, 5000.0, 20_000.0].map(|x| (x, figure(x))).to_vec()
    }

    #[test]
    fn powers_have_their_exponents() {
        for power in [0.0, 0.5, 1.0, 2.0] {
            let found = exponent(&of(|x| 3.0 * x.powf(power))).unwrap();
            assert!((found - power).abs() < 1e-9, "{found} for {power}");
        }
        // A constant part makes it less than linear.
        assert!(exponent(&of(|x| 10.0 + 0.001 * x)).unwrap() < 1.0);
    }

    #[test]
    fn too_few_points_have_none() {
        for points in [&[][..], &[(1.0, 1.0)], &[(1.0, 1.0), (2.0, 0.0)], &[(1.0, 1.0), (1.0, 2.0)]] {
            assert_eq!(exponent(points), None, "{points:?}");
        }
    }

    #[test]
    fn the_step_that_is_too_fast_is_named() {
        assert!(faster(&of(|x| x), 1.0).is_empty());
        let bent = of(|x| if x < 20_000.0 { x } else { 2.0 * x });
        assert_eq!(faster(&bent, 1.0), [20_000.0]);
        assert_eq!(faster(&of(|x| x), 0.0), [1000.0, 5000.0, 20_000.0]);
        assert!(faster(&of(|x| 1.0 + 0.1 / x), 0.0).is_empty());
        // What was nothing has no ratio.
        assert!(faster(&[(1.0, 0.0), (2.0, 5.0)], 1.0).is_empty());
    }

    #[test]
    fn each_more_is_counted_from_end_to_end() {
        assert!((marginal(&of(|x| 10.0 + 0.5 * x)).unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(marginal(&[(1.0, 1.0)]), None);
    }
}
