# Leaves a daemon behind that keeps its output open, in a session of its own.
setsid sleep 987654 &
mkdir -p /var/lib/fabric
echo started >/var/lib/fabric/started
