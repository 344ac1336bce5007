"""MLPerf LoadGen, MLCommons' own load generator, driving a bundle; the package mlcommons-loadgen is an extra."""
