"""Signed versions by the convention of OpenSSF Model Signing: one detached Sigstore bundle, `model.sig`, beside the seal."""
