/** networking.istio.io Gateway, the fields that have behaviour. Meaning and defaults: istio/api gateway.proto. */
export interface GatewaySpec {
  readonly selector?: Readonly<Record<string, string>>;
  readonly servers?: readonly GatewayServerSpec[];
  /** Not of Istio: only proxies of its own namespace serve it. */
  readonly isForOwnNamespace?: boolean;
  /** Not of Istio: the object that it was made of. */
  readonly source?: { readonly object: unknown; readonly path: string };
}

export interface GatewayServerSpec {
  readonly name?: string;
  readonly bind?: string;
  readonly port?: { readonly number: number; readonly name?: string; readonly protocol: string; readonly targetPort?: number };
  readonly hosts: readonly string[];
  readonly tls?: ServerTlsSpec;
  readonly defaultEndpoint?: string;
}

export interface ServerTlsSpec {
  readonly mode?: 'PASSTHROUGH' | 'SIMPLE' | 'MUTUAL' | 'AUTO_PASSTHROUGH' | 'ISTIO_MUTUAL' | 'OPTIONAL_MUTUAL';
  readonly httpsRedirect?: boolean;
  readonly credentialName?: string;
  /** Not of Istio: where the secret is, when it is in another namespace than the Gateway. */
  readonly credentialNamespace?: string;
  /** Not of Istio: the ConfigMap (`NAMESPACE/NAME`) with the roots that clients are verified by, under `ca.crt`. */
  readonly clientRoots?: string;
  readonly serverCertificate?: string;
  readonly privateKey?: string;
  readonly caCertificates?: string;
  readonly minProtocolVersion?: string;
  readonly maxProtocolVersion?: string;
  readonly cipherSuites?: readonly string[];
  readonly subjectAltNames?: readonly string[];
  readonly credentialNames?: readonly string[];
  readonly caCertCredentialName?: string;
  readonly caCrl?: string;
  readonly tlsCertificates?: readonly { readonly serverCertificate?: string; readonly privateKey?: string; readonly caCertificates?: string }[];
  readonly verifyCertificateSpki?: readonly string[];
  readonly verifyCertificateHash?: readonly string[];
  readonly alpnProtocols?: readonly string[];
  readonly ecdhCurves?: readonly string[];
  readonly insecureSkipVerify?: boolean;
}
