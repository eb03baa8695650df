# Sourced by the scripts that make a data disk, the template of machines' own disks.

# data_tree TREE FOLDER: the folders of an empty data disk, for a guest whose root file system is TREE.
data_tree() {
  mkdir -p "$2"/{containers,home,overlay/var/upper,overlay/var/work}
  cp -a "$1/root" "$2/root"; chmod 700 "$2/root"
}

# data_disk FOLDER FILE: a sparse ext4 with the contents of FOLDER.
data_disk() {
  truncate -s 64G "$2"
  # A sparse file reads as zeros: nothing has to be initialized, neither now nor by the guest later.
  mkfs.ext4 -q -L garret-data -m 0 -J size=128 -E assume_storage_prezeroed=1,discard,root_owner=0:0 -d "$1" "$2"
  # No program may change a template that machines are made from.
  chmod 444 "$2"
}
