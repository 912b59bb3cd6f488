/** networking.istio.io Gateway, the fields that have behaviour. Meaning and defaults: istio/api gateway.proto. */
export interface GatewaySpec {
  readonly selector?: Readonly<Record<string, string>>;
  readonly servers?: readonly GatewayServerSpec[];
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
  readonly serverCertificate?: string;
  readonly privateKey?: string;
  readonly caCertificates?: string;
  readonly minProtocolVersion?: string;
  readonly maxProtocolVersion?: string;
  readonly cipherSuites?: readonly string[];
  readonly subjectAltNames?: readonly string[];
}
