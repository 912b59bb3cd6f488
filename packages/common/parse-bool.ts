/** Reads a boolean from text as Go's strconv.ParseBool does, which is what Istio and Kubernetes read annotations with; undefined: it is not a boolean. */
export function parseBool(text: string): boolean | undefined {
  if (['1', 't', 'T', 'true', 'TRUE', 'True'].includes(text)) return true;
  return ['0', 'f', 'F', 'false', 'FALSE', 'False'].includes(text) ? false : undefined;
}
