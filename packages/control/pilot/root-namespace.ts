/** The namespace whose policies hold for the whole mesh, as in Istio. */
export const rootNamespace = 'istio-system';
