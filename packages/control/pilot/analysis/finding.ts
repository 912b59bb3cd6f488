/** Something in the configuration that is not as its writer will have meant it. Codes are Istio's where it has one. */
export interface Finding {
  readonly code:
    | 'IST0101'
    | 'IST0109'
    | 'IST0110'
    | 'IST0111'
    | 'IST0127'
    | 'IST0130'
    | 'IST0131'
    | 'IST0132'
    | 'IST0173'
    | 'IST0174'
    | 'MZ0001'
    | 'MZ0002'
    | 'MZ0003'
    | 'MZ0004'
    | 'MZ0005'
    | 'MZ0006'
    | 'MZ0007'
    | 'MZ0008'
    | 'MZ0009'
    | 'MZ0010'
    | 'MZ0011'
    | 'MZ0012'
    | 'MZ0013'
    | 'MZ0014'
    | 'MZ0015'
    | 'MZ0016'
    | 'MZ0017'
    | 'MZ0018'
    | 'MZ0019'
    | 'MZ0020'
    | 'MZ0021'
    | 'MZ0022'
    | 'MZ0023'
    | 'MZ0024'
    | 'MZ0025'
    | 'MZ0026';
  readonly level: 'error' | 'warning' | 'info';
  /** `VirtualService default/reviews`. */
  readonly object: string;
  /** The field, `spec.http[0].route[1].destination.subset`. */
  readonly path: string;
  /** Where a person wrote it, `bookinfo.yaml:41`. */
  readonly place: string;
  readonly message: string;
}

export function describeFinding(finding: Finding): string {
  return `${finding.place ? `${finding.place}: ` : ''}${finding.message} [${finding.code}]`;
}
