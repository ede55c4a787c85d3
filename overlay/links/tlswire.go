package links

import (
	"fabric/overlay"
	linksv1 "fabric/proto/links/v1"
)

func carrierToWire(c *overlay.Carrier) *linksv1.Carrier {
	if c == nil {
		return nil
	}
	return &linksv1.Carrier{
		TokenFile: c.TokenFile, TokenName: c.TokenName, Dial: c.Dial, Pin: c.Pin, Proxy: c.Proxy, ProxyCredentialsFile: c.ProxyCredentialsFile,
	}
}

func carrierFromWire(w *linksv1.Carrier) *overlay.Carrier {
	if w == nil {
		return nil
	}
	return &overlay.Carrier{
		TokenFile: w.GetTokenFile(), TokenName: w.GetTokenName(), Dial: w.GetDial(), Pin: w.GetPin(),
		Proxy: w.GetProxy(), ProxyCredentialsFile: w.GetProxyCredentialsFile(),
	}
}

func listenerToWire(l *overlay.Listener) *linksv1.Listener {
	if l == nil {
		return nil
	}
	return &linksv1.Listener{Port: int32(l.Port), CertificateFile: l.CertificateFile, KeyFile: l.KeyFile}
}

func listenerFromWire(w *linksv1.Listener) *overlay.Listener {
	if w == nil {
		return nil
	}
	return &overlay.Listener{Port: int(w.GetPort()), CertificateFile: w.GetCertificateFile(), KeyFile: w.GetKeyFile()}
}
