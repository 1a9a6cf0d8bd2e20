//! Where QEMU's VT-d does otherwise than the manual.
