"""Eight simulated devices, in a process of their own: they change every thread pool."""

import jax

assert jax.device_count() == 8, (
    f"these tests need 8 devices and see {jax.device_count()}: "
    "run them by themselves with XLA_FLAGS=--xla_force_host_platform_device_count=8"
)
