/** Every command, in the order in which --help lists them. */
import { addAudit } from './audit.ts'
import { addBackup } from './backup.ts'
import { addBugreport } from './bugreport.ts'
import type { AddCommand } from './command-line.ts'
import { addCompletion } from './completion.ts'
import { addConfig } from './config.ts'
import { addContent } from './content.ts'
import { addDnsConf, addNames } from './dns-conf.ts'
import { addDoctor } from './doctor.ts'
import { addConnections, addForward, addTrace } from './forward.ts'
import { addGc } from './gc.ts'
import { addGet } from './get.ts'
import { addImage } from './image.ts'
import { addInstall } from './install.ts'
import { addInvite } from './invite.ts'
import { addJoin } from './join.ts'
import { addMember } from './member.ts'
import { addNetcheck } from './netcheck.ts'
import { addNetwork } from './network.ts'
import { addNixConf } from './nix-conf.ts'
import { addOciConf } from './oci-conf.ts'
import { addPeers, addPing } from './peers.ts'
import { addPin, addPins, addUnpin } from './pin.ts'
import { addPolicy } from './policy.ts'
import { addPublish, addUnpublish } from './publish.ts'
import { addRestore } from './restore.ts'
import { addSearch, addShow } from './search.ts'
import { addService } from './service.ts'
import { addStart } from './start.ts'
import { addStatus } from './status.ts'
import { addTrust } from './trust.ts'
import { addUninstall } from './uninstall.ts'
import { addVersion } from './version.ts'

export const commands: readonly AddCommand[] = [
  addStart,
  addInstall,
  addUninstall,
  addStatus,
  addPeers,
  addPing,
  addNetcheck,
  addPublish,
  addUnpublish,
  addSearch,
  addShow,
  addGet,
  addPin,
  addUnpin,
  addPins,
  addContent,
  addGc,
  addService,
  addForward,
  addConnections,
  addTrace,
  addImage,
  addNetwork,
  addInvite,
  addJoin,
  addMember,
  addPolicy,
  addAudit,
  addTrust,
  addNames,
  addDnsConf,
  addNixConf,
  addOciConf,
  addConfig,
  addDoctor,
  addBugreport,
  addBackup,
  addRestore,
  addCompletion,
  addVersion,
]
