/** The control plane: galley (configuration), pilot (discovery and routing), citadel (identity). */
export type { CertificateIssuer } from './citadel/certificate-issuer.ts';
export { IstioCaIssuer } from './citadel/istio-ca-issuer.ts';
export type { Revocation } from './citadel/revocations.ts';
export type { Identity } from './citadel/spiffe-identity.ts';
export type { FederationStatus } from './citadel/trust-bundles.ts';
export { bundlePath, type ControlPlane, type ControlPlaneOptions, homeFiles, startControlPlane } from './control-plane.ts';
export { originFileAnnotation } from './galley/directory-source.ts';
export type { Finding } from './pilot/analysis/finding.ts';
export type { ProxyStatus } from './pilot/xds/proxy-connection.ts';
export type { AuthorityStatus } from './root-rotation.ts';
