"""Other libraries' names for what m2gen does: change the import, and nothing else.

    from m2gen.compat.flashfftconv import FlashFFTConv, FlashDepthWiseConv1d    # of flashfftconv
    from m2gen.compat.safari import fftconv_func, fftconv_ref, fftconv_h3_ref   # of safari, hyena-dna and StripedHyena

What each takes and what differs from the original is said there.
"""
