/**
 * What containerd, podman and docker have to have in their configuration to pull through this agent, and from where otherwise when it does not run.
 *
 * containerd: docs/hosts.md. podman, skopeo, buildah: containers-registries.conf(5). docker: daemon.json, which mirrors docker.io only.
 */

/** A registry upstream: what images are called by, and where it is. */
export type MirroredRegistry = { prefix: string; url: string }
type ConfFile = { path: string; lines: string[] }

export type ClientConf = { files: ConfFile[]; next: string }

const DOCKER_PREFIX = 'docker.io'

/** `url` is the agent's, on loopback. */
export function containerdConf(url: string, registries: readonly MirroredRegistry[]): ClientConf {
  const directory = '/etc/containerd/certs.d'
  const mirrors = registries.map((registry) => ({
    path: `${directory}/${registry.prefix}/hosts.toml`,
    lines: [`server = ${quoted(registry.url)}`, '', `[host.${quoted(url)}]`, '  capabilities = ["pull", "resolve"]'],
  }))
  const own = {
    path: `${directory}/${hostOf(url)}/hosts.toml`,
    lines: [`server = ${quoted(url)}`, '', `[host.${quoted(url)}]`, '  capabilities = ["pull", "resolve", "push"]'],
  }
  const cri = {
    path: '/etc/containerd/config.toml',
    lines: ['[plugins."io.containerd.grpc.v1.cri".registry]', `  config_path = ${quoted(directory)}`],
  }
  return {
    files: [cri, ...mirrors, own],
    next: `sudo systemctl restart containerd; with ctr: --hosts-dir ${directory}`,
  }
}

export function podmanConf(url: string, registries: readonly MirroredRegistry[]): ClientConf {
  const host = hostOf(url)
  const lines = [
    '[[registry]]',
    `location = ${quoted(host)}`,
    'insecure = true',
    ...registries.flatMap(({ prefix }) => [
      '',
      '[[registry]]',
      `prefix = ${quoted(prefix)}`,
      `location = ${quoted(prefix)}`,
      '',
      '[[registry.mirror]]',
      `location = ${quoted(`${host}/${prefix}`)}`,
      'insecure = true',
    ]),
  ]
  return {
    files: [{ path: '/etc/containers/registries.conf.d/undernet.conf', lines }],
    next: `podman pull ${host}/NETWORK/REPOSITORY:TAG`,
  }
}

export function dockerConf(url: string, registries: readonly MirroredRegistry[]): ClientConf {
  const isMirrored = registries.some(({ prefix }) => prefix === DOCKER_PREFIX)
  const settings = { ...(isMirrored && { 'registry-mirrors': [url] }), 'insecure-registries': [hostOf(url)] }
  const next = isMirrored
    ? 'sudo systemctl restart docker'
    : `sudo systemctl restart docker; to mirror docker.io, add it to \`registries\` of the agent with ?prefix=${DOCKER_PREFIX}`
  return {
    files: [{ path: '/etc/docker/daemon.json', lines: JSON.stringify(settings, undefined, 2).split('\n') }],
    next,
  }
}

function hostOf(url: string): string {
  return new URL(url).host
}

/** As TOML has texts. */
function quoted(text: string): string {
  return JSON.stringify(text)
}
