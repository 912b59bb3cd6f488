/** cert-manager.io Issuer and ClusterIssuer. Meaning and defaults: cert-manager's API reference. */
export interface CertificateIssuerSpec {
  readonly acme?: {
    /** The directory (RFC 8555 section 7.1.1). */
    readonly server?: string;
    readonly email?: string;
    readonly privateKeySecretRef?: { readonly name?: string; readonly key?: string };
    /** Roots by which the server is known, PEM in base64. */
    readonly caBundle?: string;
    readonly preferredChain?: string;
    readonly externalAccountBinding?: { readonly keyID?: string; readonly keySecretRef?: { readonly name?: string; readonly key?: string } };
    readonly solvers?: readonly { readonly http01?: object; readonly dns01?: object; readonly selector?: object }[];
  };
  readonly [other: string]: unknown;
}

/** cert-manager.io Certificate. */
export interface CertificateSpec {
  readonly secretName?: string;
  readonly dnsNames?: readonly string[];
  readonly commonName?: string;
  readonly issuerRef?: { readonly name?: string; readonly kind?: string; readonly group?: string };
  /** How long before its end a certificate is renewed; a third of its life. */
  readonly renewBefore?: string;
  readonly renewBeforePercentage?: number;
  readonly privateKey?: { readonly algorithm?: string; readonly size?: number };
  readonly secretTemplate?: { readonly labels?: Readonly<Record<string, string>>; readonly annotations?: Readonly<Record<string, string>> };
  readonly isCA?: boolean;
  readonly [other: string]: unknown;
}
