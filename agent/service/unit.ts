/**
 * The systemd unit of the agent, and the user that it runs as, as text: what `agent install` writes, what the Debian package ships and
 * what the NixOS module is compared with. Pure: the same options give the same bytes.
 *
 * Made for systemd 252 and newer. Exposure by `systemd-analyze security` is at most 2.0; a test holds it there. What is left open, and
 * why: the network, since that is what an agent is for; MemoryDenyWriteExecute, since V8 compiles; PrivateUsers, since the agent tells the
 * users of this machine apart by the kernel's table of sockets; the file system is the machine's, read-only, since it shares the Nix store.
 */
import { CREDENTIALS } from '../config/credentials.ts'

/** Of the unit, the user, the group, and of the directories below /etc, /var/lib, /var/cache and /run. */
export const SERVICE_NAME = 'undernet'

/** Restarts come ever later from this version on; before, the delay is always the same. */
const BACKS_OFF_SINCE = 254
/** What Debian 12 has. */
const SYSTEMD_VERSION = 252
/** The status for a mistake in the configuration: another start would not help. */
const EXIT_USAGE = 2

export type UnitOptions = {
  /** The words before `start`: a launcher, or Node, its flags and the bundle. Absolute. */
  program: readonly string[]
  /** Words after `start`. */
  flags?: readonly string[]
  /** What sends the signal of a reload. */
  kill?: string
  /** systemd that will read it: newer ones know more. */
  systemdVersion?: number
}

/** Settings by section, in their order. A comment stands above its setting. */
type Setting = { key: string; value: string; comment?: string }
type UnitSections = { section: 'Unit' | 'Service' | 'Install'; settings: Setting[] }[]

/** The unit as text. */
export function serviceUnit(options: UnitOptions): string {
  const blocks = unitSections(options).map(({ section, settings }) =>
    [
      `[${section}]`,
      ...settings.flatMap(({ key, value, comment }) => [...(comment ? [`# ${comment}`] : []), `${key}=${value}`]),
    ].join('\n'),
  )
  return `# The agent of undernet. To change something: systemctl edit ${SERVICE_NAME}\n${blocks.join('\n\n')}\n`
}

/** The same, for those who write units in other ways. */
export function unitSections({
  program,
  flags = [],
  kill = '/bin/kill',
  systemdVersion = SYSTEMD_VERSION,
}: UnitOptions): UnitSections {
  return [
    {
      section: 'Unit',
      settings: [
        { key: 'Description', value: 'undernet agent: shares Nix paths, images and services among nodes' },
        { key: 'After', value: 'network.target nss-lookup.target' },
        { key: 'StartLimitIntervalSec', value: '0', comment: 'What fails is tried again for as long as it takes.' },
      ],
    },
    {
      section: 'Service',
      settings: [
        ...running([...program, 'start', ...flags], kill, systemdVersion),
        ...places(),
        ...limits(),
        ...walls(),
      ],
    },
    { section: 'Install', settings: [{ key: 'WantedBy', value: 'multi-user.target' }] },
  ]
}

/** For sysusers.d: the user, and with it the group whose members may use the agent. */
export function sysusersConf(): string {
  return `# Members of the group may use the agent: usermod -aG ${SERVICE_NAME} NAME
u ${SERVICE_NAME} - "undernet agent" /var/lib/${SERVICE_NAME} -
`
}

function running(words: readonly string[], kill: string, systemdVersion: number): Setting[] {
  const backOff = [
    { key: 'RestartSteps', value: '8' },
    { key: 'RestartMaxDelaySec', value: '2min' },
  ]
  return [
    { key: 'Type', value: 'notify' },
    { key: 'NotifyAccess', value: 'main' },
    { key: 'ExecStart', value: words.map(quoted).join(' ') },
    { key: 'ExecReload', value: `${kill} -HUP $MAINPID` },
    { key: 'User', value: SERVICE_NAME },
    { key: 'Group', value: SERVICE_NAME },
    { key: 'Restart', value: 'always' },
    { key: 'RestartSec', value: '2s' },
    ...(systemdVersion >= BACKS_OFF_SINCE ? backOff : []),
    {
      key: 'RestartPreventExitStatus',
      value: String(EXIT_USAGE),
      comment: 'A mistake in the configuration: another start would not help.',
    },
    { key: 'WatchdogSec', value: '60s', comment: 'The agent says twice in that time that it answers.' },
    { key: 'TimeoutStartSec', value: '5min', comment: 'A newer agent may have to change its database first.' },
    { key: 'TimeoutStopSec', value: '15s' },
    { key: 'KillMode', value: 'mixed' },
    { key: 'SyslogIdentifier', value: SERVICE_NAME },
    {
      key: 'SyslogLevel',
      value: 'err',
      comment: 'What comes without a level is not the log: a start that failed, a crash.',
    },
  ]
}

function places(): Setting[] {
  return [
    { key: 'StateDirectory', value: SERVICE_NAME },
    { key: 'StateDirectoryMode', value: '0700' },
    { key: 'CacheDirectory', value: SERVICE_NAME },
    { key: 'CacheDirectoryMode', value: '0700' },
    { key: 'RuntimeDirectory', value: SERVICE_NAME, comment: 'The socket is in it: members of the group may use it.' },
    { key: 'RuntimeDirectoryMode', value: '0750' },
    ...Object.values(CREDENTIALS).map((name, nth) => ({
      key: 'LoadCredential',
      value: name,
      ...(nth === 0 && { comment: 'Secrets: files of these names in /etc/credstore, if they are there.' }),
    })),
    { key: 'UMask', value: '0077' },
  ]
}

function limits(): Setting[] {
  return [
    { key: 'MemoryHigh', value: '1G' },
    { key: 'MemoryMax', value: '2G' },
    { key: 'TasksMax', value: '256' },
    { key: 'LimitNOFILE', value: '65536', comment: 'Two for each tunnel, of which there are at most 4096.' },
    { key: 'LimitCORE', value: '0', comment: 'Keys are in memory.' },
  ]
}

/** Everything that can be closed. */
function walls(): Setting[] {
  return [
    { key: 'NoNewPrivileges', value: 'yes' },
    { key: 'CapabilityBoundingSet', value: '' },
    { key: 'AmbientCapabilities', value: '' },
    { key: 'ProtectSystem', value: 'strict' },
    { key: 'ProtectHome', value: 'yes' },
    { key: 'ProtectProc', value: 'invisible' },
    { key: 'ProcSubset', value: 'pid' },
    { key: 'PrivateTmp', value: 'yes' },
    { key: 'PrivateDevices', value: 'yes' },
    { key: 'PrivateIPC', value: 'yes' },
    { key: 'DevicePolicy', value: 'closed' },
    { key: 'ProtectHostname', value: 'yes' },
    { key: 'ProtectClock', value: 'yes' },
    { key: 'ProtectKernelTunables', value: 'yes' },
    { key: 'ProtectKernelModules', value: 'yes' },
    { key: 'ProtectKernelLogs', value: 'yes' },
    { key: 'ProtectControlGroups', value: 'yes' },
    { key: 'LockPersonality', value: 'yes' },
    { key: 'KeyringMode', value: 'private' },
    { key: 'RemoveIPC', value: 'yes' },
    { key: 'RestrictAddressFamilies', value: 'AF_UNIX AF_INET AF_INET6 AF_NETLINK' },
    { key: 'RestrictNamespaces', value: 'yes' },
    { key: 'RestrictRealtime', value: 'yes' },
    { key: 'RestrictSUIDSGID', value: 'yes' },
    { key: 'SystemCallArchitectures', value: 'native' },
    { key: 'SystemCallFilter', value: '@system-service' },
    { key: 'SystemCallFilter', value: '~@privileged @resources @keyring @memlock' },
    {
      key: 'SystemCallFilter',
      value: 'setpriority',
      comment: 'Without capabilities it only lowers: threads for bulk give way.',
    },
    { key: 'SystemCallErrorNumber', value: 'EPERM' },
  ]
}

/** A word of a command line, as systemd reads them: $ and % would be replaced. */
function quoted(word: string): string {
  const plain = word.replaceAll('%', '%%').replaceAll('$', '$$$$')
  return /^[\w@%+=:,./$-]+$/.test(plain) ? plain : `"${plain.replace(/["\\]/g, '\\$&').replaceAll('\n', '\\n')}"`
}
