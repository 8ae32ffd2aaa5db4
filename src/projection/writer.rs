//! The atomic writer: the kubelet's `..data` layout, in one short burst.
