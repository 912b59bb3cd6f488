import type { CorsPolicySpec, HeadersSpec, HttpRetrySpec } from './virtual-service.ts';

/** mizzen.dev/v1alpha1 Api; its fields are explained in ../schemas/Api.json, which `kubectl explain api` shows. */
export interface ApiSpec {
  readonly hosts: readonly string[];
  readonly paths?: readonly string[];
  readonly version?: string;
  readonly versionHeader?: string;
  readonly placement: 'edge' | 'sidecar' | 'both' | 'client';
  readonly gateways?: readonly string[];
  readonly listener?: ApiListenerSpec;
  readonly upstream: { readonly service: string; readonly port?: number; readonly subset?: string };
  readonly openapi?: DocumentSpec & { readonly inline?: Readonly<Record<string, unknown>> };
  readonly policies?: ApiPoliciesSpec;
}

export interface ApiListenerSpec {
  readonly port: number;
  readonly bind?: string;
  readonly tls?: { readonly credentialName: string; readonly mode?: 'SIMPLE' | 'MUTUAL' };
  readonly proxyProtocol?: boolean;
}

/** Where a document is: a file beside the resource's own, or a key of a ConfigMap. */
export interface DocumentSpec {
  readonly file?: string;
  readonly configMap?: { readonly name: string; readonly key: string };
}

export interface ApiPoliciesSpec {
  readonly ipAccess?: { readonly allow?: readonly string[]; readonly deny?: readonly string[] };
  readonly cors?: CorsPolicySpec;
  readonly login?: LoginSpec;
  readonly authentication?: {
    readonly apiKey?: { readonly headers?: readonly string[]; readonly queryParameters?: readonly string[] };
    readonly basic?: { readonly realm?: string };
    readonly hmac?: { readonly clockSkewSeconds?: number; readonly requiresDigest?: boolean };
    readonly jwt?: readonly JwtProviderSpec[];
    readonly optional?: boolean;
    readonly forwardCredentials?: boolean;
    readonly allow?: { readonly consumers?: readonly string[]; readonly groups?: readonly string[] };
  };
  readonly rateLimits?: readonly RateLimitSpec[];
  readonly validation?: { readonly maxBodyBytes?: number; readonly allowUnknown?: boolean; readonly basePath?: string };
  readonly transform?: {
    readonly headers?: HeadersSpec;
    readonly path?: { readonly replacePrefix?: string; readonly regex?: string; readonly substitution?: string };
    readonly host?: string;
  };
  readonly filters?: readonly FilterReferenceSpec[];
  readonly cache?: { readonly defaultTtl?: string; readonly maxBodyBytes?: number; readonly maxBytes?: number };
  readonly transcoding?: DocumentSpec & { readonly services: readonly string[]; readonly maxBodyBytes?: number };
  readonly credential?: {
    readonly header?: string;
    readonly queryParameter?: string;
    readonly prefix?: string;
    readonly secret: SecretKeySpec;
  };
  readonly timeout?: string;
  readonly retries?: HttpRetrySpec;
}

/** A value of a Secret in the same namespace. */
export interface SecretKeySpec {
  readonly name: string;
  readonly key: string;
}

/** End users log in by OpenID Connect. */
export interface LoginSpec {
  readonly issuer: string;
  readonly clientId: string;
  readonly clientSecret?: SecretKeySpec;
  readonly cookieSecret: SecretKeySpec;
  readonly scopes?: readonly string[];
  readonly callbackPath?: string;
  readonly logoutPath?: string;
  readonly forwardAccessToken?: boolean;
  readonly claimToHeader?: Readonly<Record<string, string>>;
  readonly sessionDuration?: string;
}

export interface JwtProviderSpec {
  readonly name?: string;
  readonly issuer: string;
  readonly audiences?: readonly string[];
  readonly jwks?: string;
  readonly jwksUri?: string;
  readonly headers?: readonly string[];
  readonly queryParameters?: readonly string[];
  readonly clockSkewSeconds?: number;
  readonly claimToHeader?: Readonly<Record<string, string>>;
  readonly consumerClaim?: string;
  /** The claim whose values count as groups; without it the groups of a token count for nothing. */
  readonly groupsClaim?: string;
}

export interface RateLimitSpec {
  readonly name?: string;
  readonly requests: number;
  readonly per: string;
  readonly burst?: number;
  readonly by?: 'all' | 'consumer' | 'ip' | 'header' | 'claim';
  readonly key?: string;
  readonly scope?: 'local' | 'global';
  readonly failClosed?: boolean;
}

/** A filter that a user wrote (@mizzen/filter). */
export interface FilterReferenceSpec {
  readonly file: string;
  readonly config?: Readonly<Record<string, unknown>>;
  readonly timeout?: string;
}

/** mizzen.dev/v1alpha1 Consumer. */
export interface ConsumerSpec {
  readonly description?: string;
  readonly groups?: readonly string[];
}

/** mizzen.dev/v1alpha1 Credential. One of apiKey, basic, hmac and jwt. */
export interface CredentialSpec {
  readonly consumer: string;
  readonly apiKey?: { readonly sha256: string };
  readonly basic?: { readonly username: string; readonly passwordHash: string };
  readonly hmac?: { readonly keyId: string; readonly secret: SecretKeySpec };
  /** Tokens of this issuer about this subject are the consumer's. */
  readonly jwt?: { readonly issuer: string; readonly subject: string };
  readonly expires?: string;
}
