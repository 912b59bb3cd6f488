import type { TargetReference } from './authorization-policy.ts';

/** security.istio.io RequestAuthentication. Meaning and defaults: istio/api request_authentication.proto. */
export interface RequestAuthenticationSpec {
  readonly selector?: { readonly matchLabels?: Readonly<Record<string, string>> };
  readonly targetRef?: TargetReference;
  readonly targetRefs?: readonly TargetReference[];
  readonly jwtRules?: readonly JwtRuleSpec[];
}

export interface JwtRuleSpec {
  readonly issuer?: string;
  readonly audiences?: readonly string[];
  readonly jwksUri?: string;
  readonly jwks?: string;
  readonly fromHeaders?: readonly { readonly name?: string; readonly prefix?: string }[];
  readonly fromParams?: readonly string[];
  readonly fromCookies?: readonly string[];
  readonly outputPayloadToHeader?: string;
  readonly outputClaimToHeaders?: readonly { readonly header?: string; readonly claim?: string }[];
  readonly forwardOriginalToken?: boolean;
  /** Claims that are lists written with spaces, beside `scope` and `permission`. */
  readonly spaceDelimitedClaims?: readonly string[];
  readonly timeout?: string;
}
