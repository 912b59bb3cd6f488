/** security.istio.io AuthorizationPolicy. Meaning and defaults: istio/api authorization_policy.proto. */
export interface AuthorizationPolicySpec {
  readonly selector?: { readonly matchLabels?: Readonly<Record<string, string>> };
  readonly targetRef?: TargetReference;
  readonly targetRefs?: readonly TargetReference[];
  readonly action?: 'ALLOW' | 'DENY' | 'AUDIT' | 'CUSTOM';
  readonly provider?: { readonly name?: string };
  /** None: no request meets the policy. */
  readonly rules?: readonly AuthorizationRuleSpec[];
}

export interface TargetReference {
  readonly group?: string;
  readonly kind?: string;
  readonly name?: string;
  readonly namespace?: string;
}

/** One of `from`, one of `to` and all of `when`; what is absent is met by all. */
export interface AuthorizationRuleSpec {
  readonly from?: readonly { readonly source?: SourceSpec }[];
  readonly to?: readonly { readonly operation?: OperationSpec }[];
  readonly when?: readonly ConditionSpec[];
}

/** All that is given must be met. Texts may begin or end in `*`. */
export interface SourceSpec {
  readonly principals?: readonly string[];
  readonly notPrincipals?: readonly string[];
  readonly requestPrincipals?: readonly string[];
  readonly notRequestPrincipals?: readonly string[];
  readonly namespaces?: readonly string[];
  readonly notNamespaces?: readonly string[];
  readonly serviceAccounts?: readonly string[];
  readonly notServiceAccounts?: readonly string[];
  readonly trustDomains?: readonly string[];
  readonly notTrustDomains?: readonly string[];
  readonly ipBlocks?: readonly string[];
  readonly notIpBlocks?: readonly string[];
  readonly remoteIpBlocks?: readonly string[];
  readonly notRemoteIpBlocks?: readonly string[];
}

export interface OperationSpec {
  readonly hosts?: readonly string[];
  readonly notHosts?: readonly string[];
  readonly ports?: readonly string[];
  readonly notPorts?: readonly string[];
  readonly methods?: readonly string[];
  readonly notMethods?: readonly string[];
  readonly paths?: readonly string[];
  readonly notPaths?: readonly string[];
}

export interface ConditionSpec {
  readonly key?: string;
  readonly values?: readonly string[];
  readonly notValues?: readonly string[];
}
